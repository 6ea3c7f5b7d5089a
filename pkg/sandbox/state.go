package sandbox

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
)

// PodState is the state of a pod.
//
//	creating ──▶ ready ──▶ stopping ──▶ stopped ──▶ removing
//	    └───────────────────────────────────────────────▲
//
// A pod whose init died is stopping: not ready, and it still holds what StopPod releases.
type PodState string

// The states of a pod.
const (
	PodCreating PodState = "creating"
	PodReady    PodState = "ready"
	PodStopping PodState = "stopping"
	PodStopped  PodState = "stopped"
	PodRemoving PodState = "removing"
)

// ContainerState is the state of a container.
//
//	creating ──▶ created ──▶ running ──▶ exited ──▶ removing
//	    │           └───────────────────────▲           ▲
//	    └───────────────────────────────────────────────┘
type ContainerState string

// The states of a container.
const (
	ContainerCreating ContainerState = "creating"
	ContainerCreated  ContainerState = "created"
	ContainerRunning  ContainerState = "running"
	ContainerExited   ContainerState = "exited"
	ContainerRemoving ContainerState = "removing"
)

var podTransitions = map[PodState][]PodState{
	PodCreating: {PodReady, PodRemoving},
	PodReady:    {PodStopping},
	PodStopping: {PodStopped},
	PodStopped:  {PodRemoving},
}

var containerTransitions = map[ContainerState][]ContainerState{
	ContainerCreating: {ContainerCreated, ContainerRemoving},
	ContainerCreated:  {ContainerRunning, ContainerExited},
	ContainerRunning:  {ContainerExited},
	ContainerExited:   {ContainerRemoving},
}

// checkTransition returns ErrFailedPrecondition for a transition that its table does not have.
func checkTransition[S ~string](table map[S][]S, what, id string, from, to S) error {
	if from == to || slices.Contains(table[from], to) {
		return nil
	}
	return fmt.Errorf("%s %s is %s and cannot become %s: %w", what, id, from, to, errdefs.ErrFailedPrecondition)
}

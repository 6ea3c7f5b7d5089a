package cri

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

// PodSandboxStatus has the pod with the statuses of its containers and when they were taken.
func (s *Server) PodSandboxStatus(_ context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	pod, err := s.pod(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.PodSandboxStatusResponse{
		Status:             podStatus(pod),
		ContainersStatuses: s.containerStatuses(pod.ID),
		Timestamp:          nanos(time.Now()),
	}
	if r.GetVerbose() {
		if resp.Info, err = podInfo(pod); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// pod finds a pod that was created.
func (s *Server) pod(id string) (sandbox.Pod, error) {
	if err := checkID("pod_sandbox_id", id); err != nil {
		return sandbox.Pod{}, err
	}
	pod, err := s.sandboxes.Pod(id)
	if err == nil && pod.State == sandbox.PodCreating {
		err = fmt.Errorf("pod %s is still being created: %w", pod.ID, errdefs.ErrNotFound)
	}
	return pod, err
}

// ready finds a pod that is ready.
func (s *Server) ready(id string) (sandbox.Pod, error) {
	pod, err := s.pod(id)
	if err == nil && pod.State != sandbox.PodReady {
		err = fmt.Errorf("pod %s is %s, not ready: %w", pod.ID, pod.State, errdefs.ErrFailedPrecondition)
	}
	return pod, err
}

package cri

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

// keepPods is PodSandboxFilter: all that it sets must match, an ID by its beginning.
func keepPods(f *runtimeapi.PodSandboxFilter) func(sandbox.Pod) bool {
	return func(p sandbox.Pod) bool {
		return strings.HasPrefix(p.ID, f.GetId()) &&
			(f.GetState() == nil || f.GetState().GetState() == podState(p.State)) &&
			hasLabels(p.Config.GetLabels(), f.GetLabelSelector())
	}
}

// keepContainers is ContainerFilter, likewise.
func keepContainers(f *runtimeapi.ContainerFilter) func(sandbox.Container) bool {
	return func(c sandbox.Container) bool {
		return strings.HasPrefix(c.ID, f.GetId()) &&
			strings.HasPrefix(c.PodID, f.GetPodSandboxId()) &&
			(f.GetState() == nil || f.GetState().GetState() == containerState(c.State)) &&
			hasLabels(c.Config.GetLabels(), f.GetLabelSelector())
	}
}

// keepStats is ContainerStatsFilter.
func keepStats(f *runtimeapi.ContainerStatsFilter) func(sandbox.Container) bool {
	return keepContainers(&runtimeapi.ContainerFilter{Id: f.GetId(), PodSandboxId: f.GetPodSandboxId(), LabelSelector: f.GetLabelSelector()})
}

// keepPodStats is PodSandboxStatsFilter.
func keepPodStats(f *runtimeapi.PodSandboxStatsFilter) func(sandbox.Pod) bool {
	return keepPods(&runtimeapi.PodSandboxFilter{Id: f.GetId(), LabelSelector: f.GetLabelSelector()})
}

func hasLabels(labels, selector map[string]string) bool {
	for k, want := range selector {
		if got, ok := labels[k]; !ok || got != want {
			return false
		}
	}
	return true
}

// selected returns those that are kept, translated.
func selected[T, Item any](all []T, keep func(T) bool, translate func(T) Item) []Item {
	var items []Item
	for _, one := range all {
		if keep(one) {
			items = append(items, translate(one))
		}
	}
	return items
}

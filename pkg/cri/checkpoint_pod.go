package cri

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

// CheckpointPod judges the request and is not served: it needs CRIU.
func (s *Server) CheckpointPod(ctx context.Context, r *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	if err := checkDeadline(ctx); err != nil {
		return nil, err
	}
	if err := checkNoOptions(r.GetOptions()); err != nil {
		return nil, err
	}
	pod, err := s.ready(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := s.checkSelection(pod, r.GetContainerIds()); err != nil {
		return nil, err
	}
	if err := checkEmptyDirectory("output_path", r.GetOutputPath()); err != nil {
		return nil, err
	}
	return nil, unimplemented("pods cannot be checkpointed: this runtime does not use CRIU")
}

// checkSelection holds the containers to the contract of CheckpointPodRequest.container_ids: at least one, none twice,
// all of the pod, all running.
func (s *Server) checkSelection(pod sandbox.Pod, ids []string) error {
	if len(ids) == 0 {
		return invalid("container_ids is empty: name containers of pod %s", pod.ID)
	}
	seen := map[string]int{}
	for i, id := range ids {
		field := fmt.Sprintf("container_ids[%d]", i)
		container, err := s.running(field, id)
		if err != nil {
			return err
		}
		if container.PodID != pod.ID {
			return invalid("%s: container %s is not of pod %s", field, container.ID, pod.ID)
		}
		if first, ok := seen[container.ID]; ok {
			return invalid("%s: container %s is that of container_ids[%d] too", field, container.ID, first)
		}
		seen[container.ID] = i
	}
	return nil
}

package cri

import (
	"context"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
)

// RestorePod judges the request, as RunPodSandbox and CreateContainer would judge what it is made of, and is not served:
// it needs CRIU.
func (s *Server) RestorePod(ctx context.Context, r *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	if err := checkDeadline(ctx); err != nil {
		return nil, err
	}
	if err := checkNoOptions(r.GetOptions()); err != nil {
		return nil, err
	}
	if err := s.checkHandler("runtime_handler", r.GetRuntimeHandler()); err != nil {
		return nil, err
	}
	if r.GetConfig() == nil {
		return nil, invalid("config is missing")
	}
	if err := spec.CheckPod(r.GetConfig()); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if err := s.checkContainerConfigs(r.GetConfig(), r.GetContainerConfigs()); err != nil {
		return nil, err
	}
	if err := checkDirectory("checkpoint_path", r.GetCheckpointPath()); err != nil {
		return nil, err
	}
	return nil, unimplemented("pods cannot be restored from a checkpoint: this runtime does not use CRIU")
}

// checkContainerConfigs holds them to the contract of RestorePodRequest.container_configs: at least one, and no name twice.
func (s *Server) checkContainerConfigs(pod *runtimeapi.PodSandboxConfig, configs []*runtimeapi.ContainerConfig) error {
	if len(configs) == 0 {
		return invalid("container_configs is empty: name the containers of the checkpoint")
	}
	seen := map[string]int{}
	for i, c := range configs {
		field := fmt.Sprintf("container_configs[%d]", i)
		if err := spec.CheckContainer(pod, c); err != nil {
			return fmt.Errorf("%s: %w", field, err)
		}
		if err := s.checkImages(field, c); err != nil {
			return err
		}
		name := c.GetMetadata().GetName()
		if first, ok := seen[name]; ok {
			return invalid("%s.metadata.name %q is that of container_configs[%d] too", field, name, first)
		}
		seen[name] = i
	}
	return nil
}

package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateContainerResources changes the limits of a container that is created or running: all or none of them. What is
// zero in the request stays as it is.
func (s *Server) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if r.GetWindows() != nil {
		return nil, invalid("windows: this host runs Linux")
	}
	if r.GetLinux() == nil {
		return nil, invalid("linux is missing")
	}
	if err := s.sandboxes.UpdateContainer(ctx, r.GetContainerId(), r.GetLinux()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

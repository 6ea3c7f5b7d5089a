package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

// ContainerStatus has all that is known of a container.
func (s *Server) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	container, err := s.container("container_id", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: s.containerStatus(container)}
	if r.GetVerbose() {
		if resp.Info, err = s.containerInfo(container); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// container finds a container that was created; field is where the request names it.
func (s *Server) container(field, id string) (sandbox.Container, error) {
	if err := checkID(field, id); err != nil {
		return sandbox.Container{}, err
	}
	container, err := s.sandboxes.Container(id)
	if err == nil && container.State == sandbox.ContainerCreating {
		err = fmt.Errorf("container %s is still being created: %w", container.ID, errdefs.ErrNotFound)
	}
	return container, err
}

// running finds a container that runs.
func (s *Server) running(field, id string) (sandbox.Container, error) {
	container, err := s.container(field, id)
	if err == nil && container.State != sandbox.ContainerRunning {
		err = fmt.Errorf("container %s is %s, not running: %w", container.ID, container.State, errdefs.ErrFailedPrecondition)
	}
	return container, err
}

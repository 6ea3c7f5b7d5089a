package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

// Attach returns the URL at which a container's own streams can be had. A created container can be attached to as well,
// so that nothing of its output is missed.
func (s *Server) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	container, err := s.container("container_id", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if container.State != sandbox.ContainerCreated && container.State != sandbox.ContainerRunning {
		return nil, fmt.Errorf("container %s is %s, neither created nor running: %w", container.ID, container.State, errdefs.ErrFailedPrecondition)
	}
	if err := checkStreams(r); err != nil {
		return nil, err
	}
	if has := container.Config.GetTty(); r.GetTty() != has {
		return nil, invalid("tty is %t, and of container %s it is %t", r.GetTty(), container.ID, has)
	}
	if r.GetStdin() && !container.Config.GetStdin() {
		return nil, invalid("stdin is true, and container %s has none", container.ID)
	}
	r.ContainerId = container.ID
	url, err := s.streaming.Attach(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

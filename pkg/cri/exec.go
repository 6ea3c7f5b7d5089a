package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

// Exec returns the URL at which a command can be run with the caller's streams. What can be known to be wrong is said
// here, where the caller still gets an error with a code.
func (s *Server) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	container, err := s.container(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if container.State != sandbox.ContainerRunning {
		return nil, fmt.Errorf("container %s is %s, not running: %w", container.ID, container.State, errdefs.ErrFailedPrecondition)
	}
	if err := checkCommand(r.GetCmd()); err != nil {
		return nil, err
	}
	if err := checkStreams(r); err != nil {
		return nil, err
	}
	r.ContainerId = container.ID
	url, err := s.streaming.Exec(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

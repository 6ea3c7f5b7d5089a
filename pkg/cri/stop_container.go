package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StopContainer sends the stop signal, waits for timeout seconds and kills what is left. A call that is given up does
// not kill. It may be called again, and for a container that is gone.
func (s *Server) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	grace, err := seconds("timeout", r.GetTimeout())
	if err == nil {
		err = checkID("container_id", r.GetContainerId())
	}
	if err == nil {
		err = s.sandboxes.StopContainer(ctx, r.GetContainerId(), grace)
	}
	if err := ignoreNotFound(err); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

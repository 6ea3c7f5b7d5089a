package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What is not served says so with the code Unimplemented, from which callers know to do without.

func unimplemented(what string) error { return fmt.Errorf("%s: %w", what, errdefs.ErrNotImplemented) }

// CheckpointContainer needs CRIU.
func (s *Server) CheckpointContainer(context.Context, *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return nil, unimplemented("containers cannot be checkpointed")
}

// CheckpointPod needs CRIU.
func (s *Server) CheckpointPod(context.Context, *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	return nil, unimplemented("pods cannot be checkpointed")
}

// RestorePod needs CRIU.
func (s *Server) RestorePod(context.Context, *runtimeapi.RestorePodRequest) (*runtimeapi.RestorePodResponse, error) {
	return nil, unimplemented("pods cannot be restored from a checkpoint")
}

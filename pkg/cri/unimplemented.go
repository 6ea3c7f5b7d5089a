package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
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

const noMetrics = "metrics in the form of cAdvisor are not collected: use the stats RPCs"

// ListMetricDescriptors has none to describe.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return nil, unimplemented(noMetrics)
}

// ListPodSandboxMetrics has none to list.
func (s *Server) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return nil, unimplemented(noMetrics)
}

// StreamPodSandboxMetrics has none to send.
func (s *Server) StreamPodSandboxMetrics(*runtimeapi.StreamPodSandboxMetricsRequest, grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	return unimplemented(noMetrics)
}

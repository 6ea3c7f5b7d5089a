package cri

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListContainerStats is what the running containers that match the filter use. One that ends meanwhile is left out.
func (s *Server) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	resp := &runtimeapi.ListContainerStatsResponse{Stats: s.sandboxes.ContainersStats(ctx, keepStats(r.GetFilter()))}
	return resp, complete(ctx, checkSize(resp, len(resp.GetStats()), "StreamContainerStats"))
}

// StreamContainerStats is ListContainerStats in pieces.
func (s *Server) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	stats := s.sandboxes.ContainersStats(stream.Context(), keepStats(r.GetFilter()))
	err := sendChunks(stats, all, itself, func(items []*runtimeapi.ContainerStats) error {
		return stream.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: items})
	})
	return complete(stream.Context(), err)
}

// complete makes a list that was collected beyond the caller's deadline an error: what is missing was not looked at.
func complete(ctx context.Context, err error) error {
	if err == nil {
		err = ctx.Err()
	}
	return err
}

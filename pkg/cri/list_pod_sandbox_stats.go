package cri

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListPodSandboxStats is what the ready pods that match the filter use.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	resp := &runtimeapi.ListPodSandboxStatsResponse{Stats: s.sandboxes.PodsStats(ctx, keepPodStats(r.GetFilter()))}
	return resp, complete(ctx, checkSize(resp, len(resp.GetStats()), "StreamPodSandboxStats"))
}

// StreamPodSandboxStats is ListPodSandboxStats in pieces.
func (s *Server) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	stats := s.sandboxes.PodsStats(stream.Context(), keepPodStats(r.GetFilter()))
	err := sendChunks(stats, all, itself, func(items []*runtimeapi.PodSandboxStats) error {
		return stream.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: items})
	})
	return complete(stream.Context(), err)
}

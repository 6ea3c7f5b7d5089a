package cri

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

// ListPodSandboxMetrics reads the metrics of all ready pods and of their running containers.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	resp := &runtimeapi.ListPodSandboxMetricsResponse{}
	for _, r := range s.sandboxes.Readings(ctx) {
		resp.PodMetrics = append(resp.PodMetrics, s.podMetrics(r))
	}
	return resp, complete(ctx, checkSize(resp, len(resp.GetPodMetrics()), "StreamPodSandboxMetrics"))
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in pieces.
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	err := sendChunks(s.sandboxes.Readings(stream.Context()), all, s.podMetrics, func(items []*runtimeapi.PodSandboxMetrics) error {
		return stream.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: items})
	})
	return complete(stream.Context(), err)
}

func (s *Server) podMetrics(r *sandbox.PodReading) *runtimeapi.PodSandboxMetrics {
	meta := r.Pod.Config.GetMetadata()
	ofCgroup := []string{"", r.Cgroup, "", "", meta.GetNamespace(), meta.GetName()}
	ofSandbox := []string{"", r.Cgroup, sandboxImage, r.Pod.ID, meta.GetNamespace(), meta.GetName()}
	pm := &runtimeapi.PodSandboxMetrics{PodSandboxId: r.Pod.ID, Metrics: s.values(&r.Reading, func(m *metric) []string {
		if m.ofSandbox {
			return ofSandbox
		}
		return ofCgroup
	})}
	for _, c := range r.Containers {
		labels := []string{
			c.Container.Config.GetMetadata().GetName(), c.Cgroup, s.namedImage(c.Container).GetImage(), c.Container.ID,
			meta.GetNamespace(), meta.GetName(),
		}
		pm.ContainerMetrics = append(pm.ContainerMetrics, &runtimeapi.ContainerMetrics{
			ContainerId: c.Container.ID, Metrics: s.values(&c.Reading, func(*metric) []string { return labels }),
		})
	}
	return pm
}

// values makes the metrics of a reading, with the values of baseLabels that base says.
func (s *Server) values(r *sandbox.Reading, base func(*metric) []string) []*runtimeapi.Metric {
	var all []*runtimeapi.Metric
	for i := range s.metrics {
		m := &s.metrics[i]
		m.values(r, func(value uint64, labels ...string) {
			values := base(m)
			if len(labels) > 0 {
				values = slices.Concat(values, labels)
			}
			all = append(all, &runtimeapi.Metric{
				Name: m.name, MetricType: m.kind, LabelValues: values, Value: &runtimeapi.UInt64Value{Value: value},
			})
		})
	}
	return all
}

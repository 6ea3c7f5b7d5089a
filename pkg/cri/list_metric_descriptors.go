package cri

import (
	"context"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ListMetricDescriptors describes each metric that ListPodSandboxMetrics has on this machine. It is always the same.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	resp := &runtimeapi.ListMetricDescriptorsResponse{}
	for _, m := range s.metrics {
		resp.Descriptors = append(resp.Descriptors, &runtimeapi.MetricDescriptor{
			Name: m.name, Help: m.help, LabelKeys: slices.Concat(baseLabels, m.labels),
		})
	}
	return resp, nil
}

// servedMetrics are those which this machine's kernel has values of.
func servedMetrics(o Options) []metric {
	return slices.DeleteFunc(slices.Clone(metrics), func(m metric) bool { return m.served != nil && !m.served(o.Kernel) })
}

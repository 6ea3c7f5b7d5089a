package sandbox

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/criserver/criserver/pkg/telemetry"
)

var endsTotal = telemetry.Metrics.NewCounterVec(prometheus.CounterOpts{
	Name: "criserver_container_ends_total", Help: "Containers that have ended, by reason.",
}, []string{"reason"})

var (
	podsDesc = prometheus.NewDesc("criserver_pods", "Pods by state.", []string{"state"}, nil)
	// The states of containers are not those of CRI: see ContainerState.
	containersDesc = prometheus.NewDesc("criserver_containers", "Containers by state.", []string{"state"}, nil)
)

// Describe implements prometheus.Collector.
func (m *Manager) Describe(ch chan<- *prometheus.Desc) {
	ch <- podsDesc
	ch <- containersDesc
}

// Collect implements prometheus.Collector: it counts pods and containers.
func (m *Manager) Collect(ch chan<- prometheus.Metric) {
	pods := map[PodState]int{PodReady: 0, PodStopping: 0}
	for _, p := range m.allPods() {
		pods[p.state()]++
	}
	containers := map[ContainerState]int{ContainerRunning: 0, ContainerExited: 0}
	for _, c := range m.allContainers() {
		containers[c.state()]++
	}
	for state, n := range pods {
		ch <- prometheus.MustNewConstMetric(podsDesc, prometheus.GaugeValue, float64(n), string(state))
	}
	for state, n := range containers {
		ch <- prometheus.MustNewConstMetric(containersDesc, prometheus.GaugeValue, float64(n), string(state))
	}
}

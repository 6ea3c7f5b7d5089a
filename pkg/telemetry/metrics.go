package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Registry has the metrics of the daemon. Each package registers its own.
var Registry = prometheus.NewRegistry()

// Metrics makes metrics that are in Registry.
var Metrics = promauto.With(Registry)

func init() {
	Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
}

// Seconds are the bounds of histograms: from half a millisecond, doubling, to four minutes.
var Seconds = prometheus.ExponentialBuckets(0.0005, 2, 20)

var stageSeconds = Metrics.NewHistogramVec(prometheus.HistogramOpts{
	Name: "criserver_stage_duration_seconds", Help: "How long the stages of RPCs took.", Buckets: Seconds,
}, []string{"rpc", "stage"})

package imagesvc

import (
	"context"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/criserver/criserver/pkg/telemetry"
)

var (
	pulls = telemetry.Metrics.NewCounterVec(prometheus.CounterOpts{
		Name: "criserver_image_pulls_total", Help: "Pulls that have ended, by how: ok, or the kind of the error.",
	}, []string{"result"})
	pulledBytes = telemetry.Metrics.NewCounter(prometheus.CounterOpts{
		Name: "criserver_image_pull_bytes_total", Help: "Bytes of layers that registries have sent.",
	})
)

// countPull counts a pull that has ended.
func countPull(err error) {
	result := "ok"
	if err != nil {
		result = kindOf(err).Error()
	}
	pulls.WithLabelValues(result).Inc()
}

// inStage does a stage of a pull. Of an error it tells the kind only, for it is not scrubbed yet.
func inStage[T any](ctx context.Context, name string, do func(context.Context) (T, error)) (_ T, err error) {
	ctx, done := telemetry.Stage(ctx, name)
	defer func() { done(kindOf(err)) }()
	return do(ctx)
}

package sandbox

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/criserver/criserver/pkg/telemetry"
)

const (
	debtFirst = time.Second
	debtLast  = 5 * time.Minute
)

var debts = telemetry.Metrics.NewGauge(prometheus.GaugeOpts{
	Name: "criserver_debts", Help: "What could not be undone yet and is tried again.",
})

// owe tries undo again and again, with growing pauses, until it succeeds or
// the manager is closed; after a restart the record makes recovery owe it again.
func (m *Manager) owe(what, id string, cause error, undo func(context.Context) error) {
	log := m.log.WithField(what, id)
	log.WithError(cause).Warn("Something could not be undone and will be tried again")
	debts.Inc()
	m.background(func(ctx context.Context) {
		defer debts.Dec()
		for pause := debtFirst; ; pause = min(2*pause, debtLast) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			tctx, cancel := context.WithTimeout(ctx, stopLimit)
			err := undo(tctx)
			cancel()
			if err == nil {
				log.Info("What could not be undone before is undone")
				return
			}
			log.WithError(err).WithField("again in", pause).Debug("Still not undone")
		}
	})
}

// gone says that an error only tells that the object is not there, or no longer alive.
func gone(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err)
}

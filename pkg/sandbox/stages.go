package sandbox

import (
	"context"
	"fmt"

	"github.com/criserver/criserver/pkg/telemetry"
)

// stage is a piece of work on a pod or a container that people know by its name: errors, the trace of an operation and
// metrics have it.
type stage struct {
	name string
	do   func(context.Context) error
}

// pass does stages one after the other, and tells at, unless it is nil, which one comes. It ends with the first error, or
// when ctx does.
func pass(ctx context.Context, at func(string), stages []stage) error {
	for _, s := range stages {
		if at != nil {
			at(s.name)
		}
		if err := s.run(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

func (s stage) run(ctx context.Context) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, done := telemetry.Stage(ctx, s.name)
	defer func() { done(err) }()
	return s.do(ctx)
}

// subject is what telemetry knows of an operation on the pod.
func (p *pod) subject() telemetry.Subject {
	return telemetry.Subject{PodID: p.id, Pod: p.key.namespace + "/" + p.key.name}
}

func (c *container) subject() telemetry.Subject {
	s := c.pod.subject()
	s.Container = c.key.name
	return s
}

package shim

import (
	"time"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// stages are the pieces of a call's work, one after the other, which its reply tells.
type stages struct {
	done []wire.Stage
	last int64
}

// begin begins the first one.
func (s *stages) begin() { s.last = time.Now().UnixNano() }

// end ends one and begins the next.
func (s *stages) end(name string) {
	now := time.Now().UnixNano()
	s.done = append(s.done, wire.Stage{Name: name, From: s.last, To: now})
	s.last = now
}

// take returns those that have ended and lets them go.
func (s *stages) take() []wire.Stage {
	done := s.done
	s.done = nil
	return done
}

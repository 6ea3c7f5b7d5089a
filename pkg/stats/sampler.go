package stats

import (
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// rateWindow is the least time over which a rate is told, if there is an
// older sample: over a shorter one it would be noise.
const rateWindow = time.Second

// sample is a reading of the CPU counter.
type sample struct {
	at    time.Time
	nanos uint64
}

// history are two samples of a cgroup, at least rateWindow apart. before is
// zero until there are two.
type history struct{ before, last sample }

// Sampler reads cgroups and remembers the last CPU samples of each for CPURate. Safe for concurrent use.
type Sampler struct {
	mu      sync.Mutex
	history map[Cgroup]history
}

// NewSampler returns a sampler that has seen nothing.
func NewSampler() *Sampler { return &Sampler{history: map[Cgroup]history{}} }

// Read returns ErrNotFound when the cgroup is gone.
func (s *Sampler) Read(c Cgroup) (Usage, error) {
	u, err := c.read()
	if err != nil {
		if errdefs.IsNotFound(err) {
			s.Forget(c)
		}
		return Usage{}, err
	}
	u.CPURate = s.rate(c, sample{u.At, u.CPUNanos})
	return u, nil
}

// Forget drops the last samples.
func (s *Sampler) Forget(c Cgroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.history, c)
}

// rate returns the rate up to a new sample, and remembers the sample.
func (s *Sampler) rate(c Cgroup, now sample) *uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, ok := s.history[c]
	if !ok || now.nanos < h.last.nanos && now.at.After(h.last.at) { // it was made anew
		s.history[c] = history{last: now}
		return nil
	}
	since := h.last
	switch {
	case now.at.Sub(h.last.at) >= rateWindow:
		s.history[c] = history{before: h.last, last: now}
	case !h.before.at.IsZero():
		since = h.before
	}
	return since.rateTo(now)
}

// rateTo returns nanocores; nil if no time has passed, as when two readers
// overtake one another.
func (from sample) rateTo(to sample) *uint64 {
	elapsed := to.at.Sub(from.at)
	if elapsed <= 0 || to.nanos < from.nanos {
		return nil
	}
	rate := uint64(float64(to.nanos-from.nanos) / elapsed.Seconds())
	return &rate
}

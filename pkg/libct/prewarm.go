package libct

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

// prewarmPause is the least time between two prewarms. The kernel stays warm for
// about one more grace period, so sooner would be for nothing.
const prewarmPause = 10 * time.Millisecond

// prewarmer shortens creations. A process is moved into a cgroup only after a
// grace period of RCU, 10 ms and more on an idle machine, unless somebody else
// was moved a moment ago: cgroup_threadgroup_rwsem then is in its writers' mode
// still. To move ourselves to where we are starts that period early, while the
// creation has other things to do.
type prewarmer struct {
	procs string // cgroup.procs of our own cgroup; empty: not found, and nothing is done
	last  atomic.Int64
}

func newPrewarmer() *prewarmer {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return &prewarmer{}
	}
	for line := range bytes.Lines(b) { // "hierarchy:controllers:path", cgroups(7); any hierarchy will do
		f := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(f) < 3 {
			continue
		}
		procs := filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(f[1], "name="), f[2], "cgroup.procs")
		if _, err := os.Stat(procs); err == nil {
			return &prewarmer{procs: procs}
		}
	}
	return &prewarmer{}
}

// Prewarm is called when a creation is to be expected. It does not wait.
func (s *Shim) Prewarm() {
	p := s.warm
	now := time.Now().UnixNano()
	last := p.last.Load()
	if p.procs == "" || now-last < int64(prewarmPause) || !p.last.CompareAndSwap(last, now) {
		return
	}
	go func() {
		if err := os.WriteFile(p.procs, []byte("0"), 0); err != nil {
			s.log.WithError(err).Debug("cgroups cannot be prewarmed")
		}
	}()
}

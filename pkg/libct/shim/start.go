package shim

import (
	"fmt"
	"time"

	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// start lets a created container execute its command, and returns when it has.
func (s *Shim) start(id string) error {
	c, err := s.lock(id)
	if err != nil {
		return err
	}
	defer c.op.Unlock()
	if c.Pid == 0 && !c.over() {
		s.finish(c, &wire.Exit{Code: startErrorCode, StartErr: c.StartErr, At: time.Now()})
		return failf(wire.CodeStart, "%s", c.StartErr)
	}
	h, err := c.alive()
	if err != nil {
		return err
	}
	if s.started(c) {
		return failf(wire.CodeState, "container %s: is started already", id)
	}
	lc := c.lc
	if lc == nil {
		if lc, err = s.load(c); err != nil {
			return err
		}
	}
	if h.out != nil { // else it was lost with an earlier shim
		p, err := newPeek(c.Args.Terminal, h.out)
		if err != nil {
			return err
		}
		defer p.close()
		c.setPeek(p)
		defer c.setPeek(nil)
	}
	if err := lc.Exec(); err != nil {
		if c.over() || pidfd.Ended(h.pidfd) {
			return failf(wire.CodeState, "container %s: ended before it was started", id)
		}
		return fmt.Errorf("start container %s: %w", id, err)
	}
	c.lc = nil
	if c.executed() {
		return nil
	}
	if e := c.ended(); e.StartErr != "" {
		return failf(wire.CodeStart, "%s", e.StartErr)
	}
	return nil
}

// startErrorCode is the exit code of a container whose command could not be executed.
const startErrorCode = 128

const (
	execInterval = 50 * time.Microsecond // between two looks, growing
	execPatience = 2 * time.Second       // a process that is starved of CPU counts as started then
)

// executed waits for the process to execute the user's command, which takes some
// hundred microseconds. No event tells of it, but the process's name changes.
// False: it has ended, and c.done is closed.
func (c *container) executed() bool {
	wait := time.Duration(execInterval)
	for end := time.Now().Add(execPatience); time.Now().Before(end); wait += wait / 2 {
		st, err := pidfd.ReadStat(c.Pid)
		if err != nil || st.State == 'Z' || st.StartTime != c.StartTime {
			<-c.done
			return false
		}
		if st.Comm != unexecuted {
			return true
		}
		time.Sleep(wait)
	}
	return true
}

func (c *container) setPeek(p *peek) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peek = p
}

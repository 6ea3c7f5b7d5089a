package sandbox

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/libct"
)

const (
	// maxExecOutput is how much of each stream ExecSync returns (CRI: ExecSyncResponse, 16 MiB).
	maxExecOutput = 16 << 20
	// drainLimit is how long output is still read after the process has ended
	// when a child that it left behind keeps the stream open.
	drainLimit = 200 * time.Millisecond
	// reapLimit is how long a killed process may take to end.
	reapLimit = 2 * time.Second
)

// ExecSync runs cmd in a running container and waits for its end, not for that
// of children it leaves behind. With a timeout > 0, after that time the process
// is killed and the error is context.DeadlineExceeded. It is killed as well
// when ctx ends.
func (m *Manager) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (ExecResult, error) {
	var stdout, stderr limitedBuffer
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	code, err := m.exec(ctx, id, cmd, Streams{Out: &stdout, Err: &stderr}, killAtEnd)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("exec in container %s: command timed out after %s: %w", id, timeout, err)
	}
	return ExecResult{Stdout: stdout.Bytes(), Stderr: stderr.Bytes(), ExitCode: code}, err
}

// Exec runs cmd in a running container with the caller's streams and returns
// its exit code. When ctx ends the streams are closed, which a terminal's
// process notices as a hang-up, and the process is left to itself.
func (m *Manager) Exec(ctx context.Context, id string, cmd []string, s Streams) (int32, error) {
	return m.exec(ctx, id, cmd, s, leaveAtEnd)
}

// What becomes of an exec's process when the context ends.
type endPolicy bool

const (
	killAtEnd  endPolicy = true
	leaveAtEnd endPolicy = false
)

func (m *Manager) exec(ctx context.Context, id string, cmd []string, s Streams, policy endPolicy) (int32, error) {
	if len(cmd) == 0 {
		return 0, fmt.Errorf("cmd: it is empty: %w", errdefs.ErrInvalidArgument)
	}
	c, err := m.findRunning(id)
	if err != nil {
		return 0, err
	}
	first, err := m.firstProcess(c)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	pipes, err := newPipes(s)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	defer pipes.close()
	proc, err := m.shim.Exec(ctx, c.id, spec.Process(first, cmd, s.TTY), pipes.theirs)
	pipes.closeTheirs()
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	defer proc.Close()
	if proc.Console != nil {
		pipes.in, pipes.out = proc.Console, proc.Console
		defer resize(s.Resize, proc)()
	}
	pipes.copy(s)
	exit, err := proc.Wait(ctx)
	if err != nil {
		if policy == killAtEnd {
			err = errors.Join(err, killProcess(proc))
		}
		return 0, err
	}
	pipes.drain()
	return int32(exit.Code), nil
}

// firstProcess is the part of the container's spec that an exec is modelled on.
// It never changes, and is kept from the first exec on: a spec is large, and
// probes are frequent.
func (m *Manager) firstProcess(c *container) (*specs.Spec, error) {
	if s := c.process.Load(); s != nil {
		return s, nil
	}
	s, err := m.shim.Spec(c.id)
	if err != nil {
		return nil, err
	}
	s = &specs.Spec{Process: s.Process}
	c.process.Store(s)
	return s, nil
}

// killProcess kills an exec's process and waits a moment for its end.
func killProcess(p *libct.Process) error {
	if err := p.Kill(syscall.SIGKILL); err != nil && !gone(err) {
		return fmt.Errorf("kill process %d: %w", p.Pid, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), reapLimit)
	defer cancel()
	if _, err := p.Wait(ctx); err != nil {
		return fmt.Errorf("%s was killed and did not end: %w", describeProcess(p.Pid), err)
	}
	return nil
}

func (m *Manager) findRunning(id string) (*container, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return nil, err
	}
	if s := c.state(); s != ContainerRunning {
		return nil, fmt.Errorf("container %s is %s, not running: %w", c.id, s, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}

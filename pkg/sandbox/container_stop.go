package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/sandbox/store"
	"github.com/criserver/criserver/pkg/telemetry"
)

// killLimit is how long a killed process may take to end before StopContainer says that it hangs.
const killLimit = 30 * time.Second

// stopState is what StopContainer remembers between calls; guarded by container.mu.
type stopState struct {
	signaled bool
	deadline time.Time // when the grace of the first call ends
}

// StopContainer sends the stop signal, once however often it is called, waits
// for grace and then kills. A later call can shorten the grace but not extend
// it. When ctx ends within the grace the container lives on until the next call.
func (m *Manager) StopContainer(ctx context.Context, id string, grace time.Duration) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	telemetry.About(ctx, c.subject())
	return m.stopContainer(ctx, c, grace)
}

func (m *Manager) stopContainer(ctx context.Context, c *container, grace time.Duration) error {
	if err := c.made.wait(ctx, c.creating); err != nil {
		return ctx.Err() // a creation that failed leaves nothing to stop
	}
	if c.state() == ContainerRemoving {
		return nil // half made or half removed: its removal ends what there is
	}
	wait, err := m.beginStop(ctx, c, grace)
	if err != nil {
		return fmt.Errorf("stop container %s: %w", c.id, err)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-c.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop container %s: it still has some of its grace and was not killed: %w", c.id, ctx.Err())
	case <-timer.C:
	}
	if err := m.kill(ctx, c); err != nil {
		return fmt.Errorf("stop container %s: %w", c.id, err)
	}
	return nil
}

// beginStop sends the stop signal unless that was done, and returns how long to wait before the kill.
func (m *Manager) beginStop(ctx context.Context, c *container, grace time.Duration) (time.Duration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.State != ContainerRunning || grace <= 0 {
		return 0, nil
	}
	deadline := time.Now().Add(grace)
	if c.stop.signaled {
		if c.stop.deadline.Before(deadline) {
			deadline = c.stop.deadline
		}
		c.stop.deadline = deadline
		return time.Until(deadline), nil
	}
	err := m.shim.Signal(ctx, c.id, spec.SignalNumber(c.rec.StopSignal), false)
	if err != nil && !gone(err) {
		return 0, fmt.Errorf("send %s: %w", c.rec.StopSignal, err)
	}
	c.stop = stopState{signaled: true, deadline: deadline}
	return grace, nil
}

// kill ends the container's processes and waits for the end of the first.
func (m *Manager) kill(ctx context.Context, c *container) error {
	select {
	case <-c.gone:
		return nil
	default:
	}
	s := c.snapshot()
	// The kernel ends a PID namespace with its first process; in a shared one each process must be killed.
	if err := m.shim.Signal(ctx, c.id, syscall.SIGKILL, !ownPID(s.Config)); err != nil && !gone(err) {
		return fmt.Errorf("kill: %w", err)
	}
	timer := time.NewTimer(killLimit)
	defer timer.Stop()
	select {
	case <-c.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of %s: %w", describeProcess(s.Pid), ctx.Err())
	case <-timer.C:
		return fmt.Errorf("%s did not end within %s of SIGKILL", describeProcess(s.Pid), killLimit)
	}
}

// describeProcess says for people what a process that does not end is waiting for: proc_pid_stat(5), proc_pid_wchan(5).
func describeProcess(pid int) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	_, after, _ := strings.Cut(string(status), "State:\t")
	state, _, _ := strings.Cut(after, "\n")
	where, err := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	if err != nil || len(where) == 0 {
		where = []byte("an unknown place")
	}
	return fmt.Sprintf("process %d in state %s in %s", pid, state, where)
}

// RemoveContainer kills the container if it must and removes it; its log stays. It may be repeated.
func (m *Manager) RemoveContainer(ctx context.Context, id string) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	telemetry.About(ctx, c.subject())
	return m.detached(ctx, stopLimit, "removal of container "+c.id, func(ctx context.Context) error {
		return m.removeContainer(ctx, c)
	})
}

func (m *Manager) removeContainer(ctx context.Context, c *container) error {
	if c.state() != ContainerRemoving {
		if err := m.stopContainer(ctx, c, 0); err != nil {
			return err
		}
	}
	if err := c.op.lock(ctx, "remove container "+c.id); err != nil {
		return err
	}
	defer c.op.unlock()
	m.mu.RLock()
	known := m.containers[c.id] == c
	m.mu.RUnlock()
	if !known {
		return nil // somebody else removed it while we waited
	}
	if err := m.setContainerState(c, ContainerRemoving, nil); err != nil {
		return err
	}
	m.containerRemoved(ctx, c)
	if err := errors.Join(m.shim.Delete(ctx, c.id, m.cgroup(c.id, c.pod.snapshot().Config)), os.RemoveAll(m.containerDir(c.id))); err != nil {
		return fmt.Errorf("remove container %s: %w", c.id, err)
	}
	m.releaseImages(c)
	if err := m.store.Delete(store.Containers, c.id); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.containers, c.id)
	c.pod.mu.Lock()
	delete(c.pod.containers, c.key)
	c.pod.mu.Unlock()
	m.mu.Unlock()
	m.disk.forget(c.id)
	m.containerEvent(runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, c)
	return nil
}

// releaseImages ends the container's uses of images, once.
func (m *Manager) releaseImages(c *container) {
	c.mu.Lock()
	uses := c.uses
	c.uses = nil
	c.mu.Unlock()
	for _, id := range uses {
		m.o.Images.Release(id)
	}
}

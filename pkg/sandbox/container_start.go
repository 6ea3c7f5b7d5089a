package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/libct"
	"github.com/criserver/criserver/pkg/telemetry"
)

// StartContainer executes the command of a created container. If that cannot
// be executed the error is a *libct.StartError, and the container is exited
// with the reason StartError and the code 128.
func (m *Manager) StartContainer(ctx context.Context, id string) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	telemetry.About(ctx, c.subject())
	return m.detached(ctx, createLimit, "start of container "+c.id, func(ctx context.Context) error {
		if err := c.op.lock(ctx, "start container "+c.id); err != nil {
			return err
		}
		defer c.op.unlock()
		return m.startContainer(ctx, c)
	})
}

func (m *Manager) startContainer(ctx context.Context, c *container) error {
	if p := c.pod.snapshot(); p.State != PodReady {
		return fmt.Errorf("start container %s: %w", c.id, notReady(p))
	}
	if err := (stage{"plugins", func(ctx context.Context) error { return m.tell(ctx, HookStart, c.pod, c) }}).run(ctx); err != nil {
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	if err := (stage{"execute", func(ctx context.Context) error { return m.execute(ctx, c) }}).run(ctx); err != nil {
		return err
	}
	m.note(ctx, HookPostStart, c.pod, c)
	return nil
}

// execute releases the created process.
func (m *Manager) execute(ctx context.Context, c *container) error {
	c.mu.Lock()
	if s := c.rec.State; s != ContainerCreated {
		c.mu.Unlock()
		return fmt.Errorf("container %s is %s: only a created one can be started, and only once: %w", c.id, s, errdefs.ErrFailedPrecondition)
	}
	c.starting = true
	c.mu.Unlock()

	err := m.shim.Start(ctx, c.id)

	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting = false
	var cannot *libct.StartError
	switch {
	case errors.As(err, &cannot):
		return errors.Join(fmt.Errorf("start container %s: %w", c.id, err), m.endLocked(c, startFailed(cannot)))
	case err != nil && c.exit == nil:
		return fmt.Errorf("start container %s: %w", c.id, err)
	}
	if err := m.setContainerStateLocked(c, ContainerRunning, func(r *containerRecord) { r.StartedAt = now() }); err != nil {
		return err
	}
	m.containerEvent(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, c)
	if c.exit != nil { // it was quick
		return m.endLocked(c, *c.exit)
	}
	return nil
}

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/sandbox/store"
	"github.com/criserver/criserver/pkg/telemetry"
)

// stopLimit bounds the work of stopping or removing one object. It is longer
// than any deadline within, so that the error tells what was waited for.
const stopLimit = 3 * time.Minute

// StopPod kills the pod's containers, gives its addresses back and lets its
// namespaces go. It may be repeated. The work goes on when ctx ends; a retry
// waits for it.
func (m *Manager) StopPod(ctx context.Context, id string) error {
	p, err := m.findPod(id)
	if err != nil {
		return err
	}
	telemetry.About(ctx, p.subject())
	return m.detached(ctx, stopLimit, "stop of pod "+p.id, func(ctx context.Context) error {
		return m.stopPod(ctx, p)
	})
}

func (m *Manager) stopPod(ctx context.Context, p *pod) error {
	if err := p.op.lock(ctx, "stop pod "+p.id); err != nil {
		return err
	}
	defer p.op.unlock()
	return m.stopPodLocked(ctx, p)
}

// stopPodLocked runs with the pod's operation lock held.
func (m *Manager) stopPodLocked(ctx context.Context, p *pod) error {
	switch p.state() {
	case PodStopped, PodRemoving:
		return nil
	}
	if err := m.setPodState(p, PodStopping, nil); err != nil {
		return err
	}
	err := pass(ctx, nil, []stage{
		{"containers", func(ctx context.Context) error { return m.killContainers(ctx, p) }},
		{"plugins", func(ctx context.Context) error {
			if err := m.endsTold(ctx, p); err != nil {
				return err
			}
			m.stopHooks(ctx, p)
			return nil
		}},
		{"release", func(ctx context.Context) error { return m.releasePod(ctx, p) }},
	})
	if err != nil {
		return fmt.Errorf("stop pod %s: %w", p.id, err)
	}
	if err := m.setPodState(p, PodStopped, func(r *podRecord) { r.IPs, r.InitPid = nil, 0 }); err != nil {
		return err
	}
	m.podEvent(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, p.id)
	return nil
}

// eachContainer runs f for all containers of a pod at once.
func eachContainer(p *pod, f func(*container) error) error {
	all := p.all()
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() { errs[i] = f(c) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (m *Manager) killContainers(ctx context.Context, p *pod) error {
	return eachContainer(p, func(c *container) error { return m.stopContainer(ctx, c, 0) })
}

// releasePod gives back what a pod holds beside its containers. It works from the ID and the configuration alone.
func (m *Manager) releasePod(ctx context.Context, p *pod) error {
	cfg := p.snapshot().Config
	return pass(ctx, nil, []stage{
		{"init", func(ctx context.Context) error { return m.shim.Delete(ctx, p.id, m.cgroup(p.id, cfg)) }},
		{"network", func(ctx context.Context) error {
			if spec.HostNetwork(cfg) {
				return nil
			}
			return m.o.Network.Teardown(ctx, m.attachment(p.id, cfg))
		}},
		{"files", func(context.Context) error { return m.removeFiles(p.id) }},
	})
}

// RemovePod stops the pod if it must and removes it with its containers. It may be repeated.
func (m *Manager) RemovePod(ctx context.Context, id string) error {
	p, err := m.findPod(id)
	if err != nil {
		return err
	}
	telemetry.About(ctx, p.subject())
	return m.detached(ctx, stopLimit, "removal of pod "+p.id, func(ctx context.Context) error {
		return m.removePod(ctx, p)
	})
}

func (m *Manager) removePod(ctx context.Context, p *pod) error {
	if err := p.op.lock(ctx, "remove pod "+p.id); err != nil {
		return err
	}
	defer p.op.unlock()
	if !m.known(p) {
		return nil // somebody else removed it while we waited
	}
	if err := m.stopPodLocked(ctx, p); err != nil {
		return err
	}
	if err := eachContainer(p, func(c *container) error { return m.removeContainer(ctx, c) }); err != nil {
		return fmt.Errorf("remove pod %s: %w", p.id, err)
	}
	released := p.state() == PodStopped // else it is half made, or its removal was under way before
	if err := m.setPodState(p, PodRemoving, nil); err != nil {
		return err
	}
	m.removeHooks(ctx, p)
	if !released {
		if err := m.releasePod(ctx, p); err != nil {
			return fmt.Errorf("remove pod %s: %w", p.id, err)
		}
	}
	if err := m.store.Delete(store.Pods, p.id); err != nil {
		return err
	}
	m.mu.Lock()
	delete(m.pods, p.id)
	delete(m.podKeys, p.key)
	m.mu.Unlock()
	m.podEvent(runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, p.id)
	return nil
}

// known says whether the pod has not been removed.
func (m *Manager) known(p *pod) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.pods[p.id] == p
}

package sandbox

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Hooks are what others have to say in the life of pods and containers (package
// nri). The events of one object come one after the other and in the order of
// the constants of HookEvent; whoever heard of its beginning hears of its end.
type Hooks interface {
	// Tell tells of an event. An error of RunPodSandbox or StartContainer refuses
	// what is about to happen; one of any other event changes nothing.
	Tell(ctx context.Context, e HookEvent, o HookObject) error
	// CreateContainer may change the spec of a container that is about to be
	// created, and returns the resources among the changes. An error refuses it.
	CreateContainer(ctx context.Context, o HookObject, s *specs.Spec) (*runtimeapi.LinuxContainerResources, error)
	// UpdateContainer returns what is to be changed beside, or instead of, change. An error refuses it.
	UpdateContainer(ctx context.Context, o HookObject, change *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error)
	// UpdatePod is asked about new resources of a pod. An error refuses them.
	UpdatePod(ctx context.Context, p Pod, overhead, resources *runtimeapi.LinuxContainerResources) error
}

// HookEvent is named as in NRI's protocol, so that an error says what was refused.
type HookEvent string

// The events that Tell tells of.
const (
	HookRunPod        HookEvent = "RunPodSandbox" // all of the pod is made, its network too
	HookPostUpdatePod HookEvent = "PostUpdatePodSandbox"
	HookStopPod       HookEvent = "StopPodSandbox"
	HookRemovePod     HookEvent = "RemovePodSandbox"
	HookPostCreate    HookEvent = "PostCreateContainer"
	HookStart         HookEvent = "StartContainer" // about to
	HookPostStart     HookEvent = "PostStartContainer"
	HookPostUpdate    HookEvent = "PostUpdateContainer"
	HookStopContainer HookEvent = "StopContainer" // it has ended, by itself or not
	HookRemove        HookEvent = "RemoveContainer"
)

// HookObject is a container with its pod, or a pod: then Container.ID is empty.
type HookObject struct {
	Pod       Pod
	Container Container
	Spec      func() (*specs.Spec, error) // of the container; it reads a file
}

func (m *Manager) hookObject(p *pod, c *container) HookObject {
	o := HookObject{Pod: m.podSnapshot(p)}
	if c != nil {
		o.Container = c.snapshot()
		o.Spec = func() (*specs.Spec, error) {
			c.mu.Lock()
			s := c.newSpec
			c.mu.Unlock()
			if s != nil {
				return s, nil
			}
			return m.shim.Spec(c.id)
		}
	}
	return o
}

// tell tells of an event of a container, or of a pod if c is nil.
func (m *Manager) tell(ctx context.Context, e HookEvent, p *pod, c *container) error {
	if m.o.Hooks == nil {
		return nil
	}
	return m.o.Hooks.Tell(ctx, e, m.hookObject(p, c))
}

// note tells of an event that an error does not change.
func (m *Manager) note(ctx context.Context, e HookEvent, p *pod, c *container) {
	if err := m.tell(ctx, e, p, c); err != nil {
		log := m.log.WithError(err).WithField("pod", p.id)
		if c != nil {
			log = log.WithField("container", c.id)
		}
		log.Warnf("%s was objected to, too late", e)
	}
}

// hookState is what hooks know of an object. An event of the beginning is announced before it is told, so that a hook
// that comes in between hears of the object one way or the other.
type hookState struct {
	announced bool
	stopped   bool
}

// runHooks asks whether the pod may be. p.mu guards hooked.
func (m *Manager) runHooks(ctx context.Context, p *pod) error {
	p.mu.Lock()
	p.hooked.announced = true
	p.mu.Unlock()
	return m.tell(ctx, HookRunPod, p, nil)
}

// stopHooks tells of the end of the pod, once. The pod's operation lock is held.
func (m *Manager) stopHooks(ctx context.Context, p *pod) {
	p.mu.Lock()
	due := p.hooked.announced && !p.hooked.stopped
	p.hooked.stopped = true
	p.mu.Unlock()
	if due {
		m.note(ctx, HookStopPod, p, nil)
	}
}

// removeHooks tells of the removal of the pod, once. The pod's operation lock is held.
func (m *Manager) removeHooks(ctx context.Context, p *pod) {
	m.stopHooks(ctx, p) // of a pod that was refused, or could not be made to the end
	p.mu.Lock()
	due := p.hooked.announced
	p.hooked.announced = false
	p.mu.Unlock()
	if due {
		m.note(ctx, HookRemovePod, p, nil)
	}
}

// containerEnded tells of a container's end in the background: nobody who waits for the end waits for hooks. c.mu is held.
func (m *Manager) containerEnded(c *container) {
	due := m.o.Hooks != nil && c.hooked.announced && !c.hooked.stopped && m.ctx.Err() == nil
	c.hooked.stopped = true
	if !due {
		close(c.endTold)
		return
	}
	m.background(func(ctx context.Context) {
		defer close(c.endTold)
		m.note(ctx, HookStopContainer, c.pod, c)
	})
}

// endsTold waits until hooks have heard of the ends of a pod's containers.
func (m *Manager) endsTold(ctx context.Context, p *pod) error {
	for _, c := range p.all() {
		if c.state() == ContainerRemoving {
			continue // one that was half made does not end
		}
		select {
		case <-c.endTold:
		case <-ctx.Done():
			return fmt.Errorf("waiting until plugins have heard of the end of container %s: %w", c.id, ctx.Err())
		}
	}
	return nil
}

// containerRemoved tells of the removal of a container, once. The container's operation lock is held.
func (m *Manager) containerRemoved(ctx context.Context, c *container) {
	c.mu.Lock()
	announced, stopped := c.hooked.announced, c.hooked.stopped
	c.hooked = hookState{stopped: true}
	c.mu.Unlock()
	if !announced {
		return
	}
	if stopped {
		select {
		case <-c.endTold:
		case <-ctx.Done():
		}
	} else { // it was refused, or could not be made to the end
		m.note(ctx, HookStopContainer, c.pod, c)
	}
	m.note(ctx, HookRemove, c.pod, c)
}

// adjust lets hooks change the spec before the container is created from it.
func (b *containerBuild) adjust(ctx context.Context) (err error) {
	if b.m.o.Hooks == nil {
		return nil
	}
	b.c.mu.Lock()
	b.c.hooked.announced, b.c.newSpec = true, b.opts.Spec
	b.c.mu.Unlock()
	b.changed, err = b.m.o.Hooks.CreateContainer(ctx, b.m.hookObject(b.c.pod, b.c), b.opts.Spec)
	return err
}

// Hooked returns what hooks have been told of and that is not over, for a hook that joins: pods, and containers that are
// created, running, or about to be created.
func (m *Manager) Hooked() (pods []Pod, containers []HookObject) {
	for _, p := range m.allPods() {
		p.mu.Lock()
		listed := p.hooked.announced && !p.hooked.stopped
		p.mu.Unlock()
		if listed {
			pods = append(pods, m.podSnapshot(p))
		}
	}
	for _, c := range m.allContainers() {
		c.mu.Lock()
		listed := c.hooked.announced && !c.hooked.stopped
		c.mu.Unlock()
		if listed {
			containers = append(containers, m.hookObject(c.pod, c))
		}
	}
	return pods, containers
}

// evictGrace is how long an evicted container has between its stop signal and the kill.
const evictGrace = 10 * time.Second

// Evict begins to stop a created or running container that a hook wants gone; the kubelet will see it exited.
func (m *Manager) Evict(id, reason string) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	if s := c.state(); s != ContainerCreated && s != ContainerRunning {
		return fmt.Errorf("container %s is %s: only a created or running one can be evicted: %w", c.id, s, errdefs.ErrFailedPrecondition)
	}
	log := m.log.WithField("container", c.id).WithField("reason", reason)
	log.Info("Container evicted")
	m.background(func(ctx context.Context) {
		if err := m.stopContainer(ctx, c, evictGrace); err != nil && ctx.Err() == nil {
			log.WithError(err).Error("An evicted container was not stopped")
		}
	})
	return nil
}

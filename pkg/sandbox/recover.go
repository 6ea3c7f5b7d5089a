package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/criserver/criserver/pkg/cni"
	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/libct/wire"
	"github.com/criserver/criserver/pkg/sandbox/store"
)

// load reads the records into memory. Damaged ones are put aside and reported.
func (m *Manager) load() error {
	pods, damaged, err := m.store.Load(store.Pods)
	if err != nil {
		return err
	}
	for id, raw := range pods {
		var rec podRecord
		if err := decode(raw, &rec); err != nil {
			damaged = append(damaged, m.store.Quarantine(store.Pods, id, err))
			continue
		}
		meta := rec.Config.M.GetMetadata()
		p := m.newPod(id, podKey{meta.GetName(), meta.GetNamespace(), meta.GetUid(), meta.GetAttempt()}, rec)
		p.made.finish(nil)
		p.hooked = hookState{announced: rec.State != PodCreating && rec.State != PodRemoving, stopped: rec.State == PodStopped}
		m.pods[id], m.podKeys[p.key] = p, p
	}
	containers, more, err := m.store.Load(store.Containers)
	if err != nil {
		return err
	}
	damaged = append(damaged, more...)
	for id, raw := range containers {
		if err := m.loadContainer(id, raw); err != nil {
			damaged = append(damaged, m.store.Quarantine(store.Containers, id, err))
		}
	}
	for _, err := range damaged {
		m.log.WithError(err).Error("A record cannot be used; what it described will be removed")
	}
	return nil
}

func (m *Manager) loadContainer(id string, raw []byte) error {
	var rec containerRecord
	if err := decode(raw, &rec); err != nil {
		return err
	}
	p, ok := m.pods[rec.PodID]
	if !ok {
		return fmt.Errorf("it is of pod %s, which has no record", rec.PodID)
	}
	meta := rec.Config.M.GetMetadata()
	c := m.newContainer(id, containerKey{meta.GetName(), meta.GetAttempt()}, p, rec)
	c.made.finish(nil)
	c.uses = rec.images()
	if rec.State == ContainerExited || rec.State == ContainerRemoving {
		close(c.gone)
		close(c.endTold)
		c.hooked.stopped = true
	}
	c.hooked.announced = rec.State != ContainerCreating && rec.State != ContainerRemoving
	m.containers[id], p.containers[c.key] = c, c
	return nil
}

// recover brings the records into line with what the shim says is running, and starts what remains to be done.
func (m *Manager) recover(ctx context.Context) error {
	m.endEarlierBoots()
	if err := m.reconcile(ctx); err != nil {
		return err
	}
	uses := map[digest.Digest]int{}
	for _, c := range m.allContainers() {
		for _, id := range c.uses {
			uses[id]++
		}
	}
	if err := m.o.Images.Retain(ctx, uses); err != nil {
		return fmt.Errorf("retain the images of containers: %w", err)
	}
	m.finishHalfDone()
	m.background(m.sweep)
	m.background(m.tendNetworks)
	return nil
}

// endEarlierBoots ends what the last shutdown of the machine ended.
func (m *Manager) endEarlierBoots() {
	for _, c := range m.allContainers() {
		c.mu.Lock()
		earlier := c.rec.Boot != m.boot
		c.mu.Unlock()
		if earlier {
			m.end(c, lost("the machine was restarted"))
		}
	}
	for _, p := range m.allPods() {
		p.mu.Lock()
		earlier := p.rec.Boot != m.boot && p.rec.State == PodReady
		p.mu.Unlock()
		if earlier {
			m.setPodStopping(p, "the machine was restarted")
		}
	}
}

func (m *Manager) setPodStopping(p *pod, why string) {
	log := m.log.WithField("pod", p.id).WithField("why", why)
	log.Warn("A pod is not ready any more")
	if err := m.setPodState(p, PodStopping, func(r *podRecord) { r.InitPid = 0 }); err != nil {
		log.WithError(err).Error("The state of a pod could not be recorded")
	}
}

// reconcileLater is told that the shim was replaced.
func (m *Manager) reconcileLater() {
	m.background(func(ctx context.Context) {
		if err := m.reconcile(ctx); err != nil {
			m.log.WithError(err).Error("The containers could not be compared with the shim's")
		}
	})
}

// reconcile compares the records of this boot with the shim's states, through the same path as a live exit.
func (m *Manager) reconcile(ctx context.Context) error {
	list, err := m.shim.List(ctx)
	if err != nil {
		return fmt.Errorf("ask the shim for its containers: %w", err)
	}
	states := make(map[string]wire.ContainerState, len(list))
	for _, s := range list {
		states[s.ID] = s
	}
	for _, c := range m.allContainers() {
		s, ok := states[c.id]
		m.reconcileContainer(c, s, ok)
	}
	for _, p := range m.allPods() {
		snap := p.snapshot()
		if snap.State != PodReady {
			continue
		}
		s, ok := states[p.id]
		switch {
		case snap.InitPid > 0 && (!ok || s.Exit != nil):
			m.initExited(p)
		case !m.pinned(p.id, snap.Config):
			m.setPodStopping(p, "its namespaces are gone")
		}
	}
	return nil
}

func (m *Manager) reconcileContainer(c *container, s wire.ContainerState, known bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.starting || c.rec.State != ContainerCreated && c.rec.State != ContainerRunning {
		return
	}
	var err error
	if known && s.Started && c.rec.State == ContainerCreated { // the daemon died between the start and its record
		err = m.setContainerStateLocked(c, ContainerRunning, func(r *containerRecord) { r.StartedAt = now() })
	}
	switch {
	case !known:
		err = errors.Join(err, m.endLocked(c, lost("the shim does not know the container any more")))
		m.finish("container", c.id, func(ctx context.Context) error { return m.endStray(ctx, c) })
	case s.Exit != nil:
		err = errors.Join(err, m.endLocked(c, exitOf(*s.Exit)))
	}
	if err != nil {
		m.log.WithError(err).WithField("container", c.id).Error("The state of a container could not be recorded")
	}
}

// endStray ends the processes of a container that the shim does not know: they must not run beside those that take its place.
func (m *Manager) endStray(ctx context.Context, c *container) error {
	if err := c.op.lock(ctx, "end what is left of container "+c.id); err != nil {
		return err
	}
	defer c.op.unlock()
	return m.shim.Delete(ctx, c.id, m.cgroup(c.id, c.pod.snapshot().Config))
}

// finishHalfDone removes what is half made, and ends stops and removals that were under way.
func (m *Manager) finishHalfDone() {
	for _, p := range m.allPods() {
		switch p.state() {
		case PodCreating:
			if err := m.setPodState(p, PodRemoving, nil); err != nil {
				m.log.WithError(err).WithField("pod", p.id).Error("The state of a pod could not be recorded")
			}
			fallthrough
		case PodRemoving:
			m.finish("pod", p.id, func(ctx context.Context) error { return m.removePod(ctx, p) })
		case PodStopping:
			m.finish("pod", p.id, func(ctx context.Context) error { return m.stopPod(ctx, p) })
		}
	}
	for _, c := range m.allContainers() {
		switch c.state() {
		case ContainerCreating:
			if err := m.setContainerState(c, ContainerRemoving, nil); err != nil {
				m.log.WithError(err).WithField("container", c.id).Error("The state of a container could not be recorded")
			}
			fallthrough
		case ContainerRemoving:
			m.finish("container", c.id, func(ctx context.Context) error { return m.removeContainer(ctx, c) })
		}
	}
}

// finish does in the background what an earlier daemon had begun; what fails is owed.
func (m *Manager) finish(what, id string, f func(context.Context) error) {
	m.background(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, stopLimit)
		defer cancel()
		if err := f(ctx); err != nil {
			m.owe(what, id, err, f)
		}
	})
}

// sweep removes what no record claims. An object is in memory before anything
// of it is made, so nothing that is being made now is taken for a leftover.
func (m *Manager) sweep(ctx context.Context) {
	errs := []error{m.sweepNetwork(ctx)}
	close(m.networkSwept)
	list, err := m.shim.List(ctx)
	errs = append(errs, err)
	for _, s := range list {
		if !m.claimed(s.ID) {
			errs = append(errs, m.shim.Delete(ctx, s.ID, ""))
		}
	}
	errs = append(errs,
		m.sweepDir(m.containersDir(), func(id string) error {
			return errors.Join(m.shim.Delete(ctx, id, ""), os.RemoveAll(m.containerDir(id)))
		}),
		m.sweepDir(m.podsDir(), m.removeFiles))
	if err := errors.Join(errs...); err != nil && ctx.Err() == nil {
		m.log.WithError(err).Warn("Leftovers could not be removed")
	}
}

// sweepNetwork ends attachments of pods that are no more. After a start pods are attached only after it; later it spares
// what this process has attached.
func (m *Manager) sweepNetwork(ctx context.Context) error {
	var keep []cni.Pod
	for _, p := range m.allPods() {
		if s := p.snapshot(); s.State != PodStopped && !spec.HostNetwork(s.Config) {
			keep = append(keep, m.attachment(p.id, s.Config))
		}
	}
	if err := m.o.Network.GC(ctx, keep); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	return nil
}

func (m *Manager) claimed(id string) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.pods[id] != nil || m.containers[id] != nil
}

func (m *Manager) sweepDir(dir string, remove func(id string) error) error {
	entries, err := os.ReadDir(dir)
	errs := []error{err}
	for _, e := range entries {
		if !m.claimed(e.Name()) {
			errs = append(errs, remove(e.Name()))
		}
	}
	return errors.Join(errs...)
}

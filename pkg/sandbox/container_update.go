package sandbox

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
)

// UpdateContainer changes the resources of a created or running container, all
// or nothing. A field that is zero stays as it is (CRI: UpdateContainerResources).
func (m *Manager) UpdateContainer(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	if err := c.op.lock(ctx, "update container "+c.id); err != nil {
		return err
	}
	defer c.op.unlock()
	if err := c.updatable(); err != nil {
		return err
	}
	if r, err = m.updateHooks(ctx, c, r); err != nil {
		return err
	}
	if err := m.setResources(ctx, c, r); err != nil {
		return err
	}
	m.note(ctx, HookPostUpdate, c.pod, c)
	return nil
}

// updateHooks lets hooks change an update. They see a valid one.
func (m *Manager) updateHooks(ctx context.Context, c *container, r *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	if m.o.Hooks == nil {
		return r, nil
	}
	if _, err := spec.ResourceChange(c.snapshot().Resources, r, m.o.Host); err != nil {
		return nil, err
	}
	changed, err := m.o.Hooks.UpdateContainer(ctx, m.hookObject(c.pod, c), r)
	if err != nil {
		return nil, fmt.Errorf("update container %s: %w", c.id, err)
	}
	if changed != nil {
		r = mergeResources(r, changed)
	}
	return r, nil
}

// SetResources is UpdateContainer for hooks: they are not asked about what they themselves want.
func (m *Manager) SetResources(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	c, err := m.findContainer(id)
	if err != nil {
		return err
	}
	return m.setResources(ctx, c, r)
}

func (c *container) updatable() error {
	if s := c.state(); s != ContainerCreated && s != ContainerRunning {
		return fmt.Errorf("container %s is %s: only a created or running one can be updated: %w", c.id, s, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// setResources needs no operation lock: hooks want changes of containers while operations on others wait for the hooks.
func (m *Manager) setResources(ctx context.Context, c *container, r *runtimeapi.LinuxContainerResources) error {
	if err := c.limits.lock(ctx, "update container "+c.id); err != nil {
		return err
	}
	defer c.limits.unlock()
	if err := c.updatable(); err != nil {
		return err
	}
	old := c.snapshot().Resources
	change, err := spec.ResourceChange(old, r, m.o.Host)
	if err != nil {
		return err
	}
	merged, err := newMessage(mergeResources(old, r))
	if err != nil {
		return fmt.Errorf("linux: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := m.shim.Update(ctx, c.id, change); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.State == ContainerRemoving {
		return nil // its record is no more
	}
	return m.setContainerStateLocked(c, c.rec.State, func(rec *containerRecord) { rec.Resources = merged })
}

// mergeResources returns old with what change sets.
func mergeResources(old, change *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	merged := &runtimeapi.LinuxContainerResources{}
	if old != nil {
		merged = proto.CloneOf(old)
	}
	// Merge replaces scalars that are set and joins maps, but appends to lists.
	merged.HugepageLimits = slices.DeleteFunc(merged.HugepageLimits, func(old *runtimeapi.HugepageLimit) bool {
		return slices.ContainsFunc(change.GetHugepageLimits(), func(l *runtimeapi.HugepageLimit) bool { return l.GetPageSize() == old.GetPageSize() })
	})
	adj := merged.OomScoreAdj
	proto.Merge(merged, change)
	merged.OomScoreAdj = adj // it is the processes', which have theirs from the beginning
	return merged
}

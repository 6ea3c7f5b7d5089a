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
	s := c.snapshot()
	if s.State != ContainerCreated && s.State != ContainerRunning {
		return fmt.Errorf("container %s is %s: only a created or running one can be updated: %w", c.id, s.State, errdefs.ErrFailedPrecondition)
	}
	change, err := spec.ResourceChange(s.Resources, r, m.o.Host)
	if err != nil {
		return err
	}
	merged, err := newMessage(mergeResources(s.Resources, r))
	if err != nil {
		return fmt.Errorf("linux: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := m.shim.Update(ctx, c.id, change); err != nil {
		return fmt.Errorf("update container %s: %w", c.id, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
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

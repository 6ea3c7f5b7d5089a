package sandbox

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
)

// UpdatePod records what a ready pod needs beside its containers, and what all of them have (CRI:
// UpdatePodSandboxResources); nil leaves as it is what was recorded before. It limits nothing: the kubelet sets
// the limits of the pod's cgroup itself.
func (m *Manager) UpdatePod(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error {
	p, err := m.findPod(id)
	if err != nil {
		return err
	}
	newOverhead, err := podResources("overhead", overhead)
	if err != nil {
		return err
	}
	newResources, err := podResources("resources", resources)
	if err != nil {
		return err
	}
	if err := p.op.lock(ctx, "update pod "+p.id); err != nil {
		return err
	}
	defer p.op.unlock()
	if s := p.snapshot(); s.State != PodReady {
		return notReady(s)
	}
	if m.o.Hooks != nil {
		if err := m.o.Hooks.UpdatePod(ctx, m.podSnapshot(p), overhead, resources); err != nil {
			return fmt.Errorf("update pod %s: %w", p.id, err)
		}
	}
	err = m.setPodState(p, PodReady, func(r *podRecord) {
		if overhead != nil {
			r.Overhead = newOverhead
		}
		if resources != nil {
			r.Resources = newResources
		}
	})
	if err == nil {
		m.note(ctx, HookPostUpdatePod, p, nil)
	}
	return err
}

func podResources(field string, r *runtimeapi.LinuxContainerResources) (message[*runtimeapi.LinuxContainerResources], error) {
	if err := spec.CheckResources(r); err != nil {
		return message[*runtimeapi.LinuxContainerResources]{}, fmt.Errorf("%s: %w", field, err)
	}
	rec, err := newMessage(r)
	if err != nil {
		err = fmt.Errorf("%s: %w: %w", field, err, errdefs.ErrInvalidArgument)
	}
	return rec, err
}

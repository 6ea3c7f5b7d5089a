package nri

import (
	"context"
	"fmt"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

// wishes are what plugins want of containers other than the one that an event is about.
type wishes struct {
	updates []*api.ContainerUpdate
	evict   []*api.ContainerEviction
}

// tellers say how to tell of each event.
var tellers = map[sandbox.HookEvent]func(*adaptation.Adaptation, context.Context, *api.PodSandbox, *api.Container) (wishes, error){
	sandbox.HookRunPod: func(a *adaptation.Adaptation, ctx context.Context, p *api.PodSandbox, _ *api.Container) (wishes, error) {
		return wishes{}, a.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: p})
	},
	sandbox.HookPostUpdatePod: func(a *adaptation.Adaptation, ctx context.Context, p *api.PodSandbox, _ *api.Container) (wishes, error) {
		return wishes{}, a.PostUpdatePodSandbox(ctx, &api.PostUpdatePodSandboxRequest{Pod: p})
	},
	sandbox.HookStopPod: func(a *adaptation.Adaptation, ctx context.Context, p *api.PodSandbox, _ *api.Container) (wishes, error) {
		return wishes{}, a.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: p})
	},
	sandbox.HookRemovePod: func(a *adaptation.Adaptation, ctx context.Context, p *api.PodSandbox, _ *api.Container) (wishes, error) {
		return wishes{}, a.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: p})
	},
	sandbox.HookPostCreate: func(a *adaptation.Adaptation, ctx context.Context, p *api.PodSandbox, c *api.Container) (wishes, error) {
		return wishes{}, a.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: p, Container: c})
	},
	sandbox.HookStart: func(a *adaptation.Adaptation, ctx context.Context, p *api.PodSandbox, c *api.Container) (wishes, error) {
		return wishes{}, a.StartContainer(ctx, &api.StartContainerRequest{Pod: p, Container: c})
	},
	sandbox.HookPostStart: func(a *adaptation.Adaptation, ctx context.Context, p *api.PodSandbox, c *api.Container) (wishes, error) {
		return wishes{}, a.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: p, Container: c})
	},
	sandbox.HookPostUpdate: func(a *adaptation.Adaptation, ctx context.Context, p *api.PodSandbox, c *api.Container) (wishes, error) {
		return wishes{}, a.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: p, Container: c})
	},
	sandbox.HookStopContainer: func(a *adaptation.Adaptation, ctx context.Context, p *api.PodSandbox, c *api.Container) (wishes, error) {
		r, err := a.StopContainer(ctx, &api.StopContainerRequest{Pod: p, Container: c})
		return wishes{updates: r.GetUpdate()}, err
	},
	sandbox.HookRemove: func(a *adaptation.Adaptation, ctx context.Context, p *api.PodSandbox, c *api.Container) (wishes, error) {
		return wishes{}, a.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: p, Container: c})
	},
}

// Tell implements sandbox.Hooks.
func (s *Service) Tell(ctx context.Context, e sandbox.HookEvent, o sandbox.HookObject) error {
	end, err := s.begin(ctx)
	if end == nil {
		return err
	}
	var c *api.Container
	if o.Container.ID != "" {
		c = s.container(o)
	}
	// A plugin that is slow is cut off. Not so one whose caller has no patience: the protocol's deadline alone counts.
	w, err := tellers[e](s.adaptation, context.WithoutCancel(ctx), pod(o.Pod), c)
	err = s.named(string(e), err)
	end()
	s.grant(ctx, w)
	return err
}

// CreateContainer implements sandbox.Hooks.
func (s *Service) CreateContainer(ctx context.Context, o sandbox.HookObject, oci *specs.Spec) (*runtimeapi.LinuxContainerResources, error) {
	end, err := s.begin(ctx)
	if end == nil {
		return nil, err
	}
	request := &api.CreateContainerRequest{Pod: pod(o.Pod), Container: s.container(o)}
	r, err := s.adaptation.CreateContainer(context.WithoutCancel(ctx), request)
	err = s.named("CreateContainer", err)
	if err == nil {
		if err = s.adjust(oci, r.GetAdjust(), request.GetContainer().GetEnv()); err != nil {
			err = fmt.Errorf("NRI: what plugins changed of the container: %w", err)
		}
	}
	end()
	if err != nil {
		return nil, err
	}
	s.grant(ctx, wishes{r.GetUpdate(), r.GetEvict()})
	changed := fromResources(r.GetAdjust().GetLinux().GetResources())
	if adj := r.GetAdjust().GetLinux().GetOomScoreAdj(); adj != nil {
		if changed == nil {
			changed = &runtimeapi.LinuxContainerResources{}
		}
		changed.OomScoreAdj = adj.GetValue()
	}
	return changed, nil
}

// UpdateContainer implements sandbox.Hooks.
func (s *Service) UpdateContainer(ctx context.Context, o sandbox.HookObject, change *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	end, err := s.begin(ctx)
	if end == nil {
		return nil, err
	}
	r, err := s.adaptation.UpdateContainer(context.WithoutCancel(ctx), &api.UpdateContainerRequest{
		Pod: pod(o.Pod), Container: s.container(o), LinuxResources: toResources(change),
	})
	err = s.named("UpdateContainer", err)
	end()
	if err != nil {
		return nil, err
	}
	// The last of the updates is of this container, nil if nobody wants to change it.
	updates := r.GetUpdate()
	last := len(updates) - 1
	s.grant(ctx, wishes{updates[:last], r.GetEvict()})
	return fromResources(updates[last].GetLinux().GetResources()), nil
}

// UpdatePod implements sandbox.Hooks.
func (s *Service) UpdatePod(ctx context.Context, p sandbox.Pod, overhead, resources *runtimeapi.LinuxContainerResources) error {
	end, err := s.begin(ctx)
	if end == nil {
		return err
	}
	defer end()
	_, err = s.adaptation.UpdatePodSandbox(context.WithoutCancel(ctx), &api.UpdatePodSandboxRequest{
		Pod: pod(p), OverheadLinuxResources: toResources(overhead), LinuxResources: toResources(resources),
	})
	return s.named("UpdatePodSandbox", err)
}

// grant does what plugins want of other containers. What fails is logged: the event that it came with is not to blame.
func (s *Service) grant(ctx context.Context, w wishes) {
	for _, e := range w.evict {
		if err := s.sandboxes.Evict(e.GetContainerId(), e.GetReason()); err != nil {
			s.log.WithError(err).Warn("A container that an NRI plugin wants evicted was not")
		}
	}
	s.update(ctx, w.updates)
}

// update changes limits and returns the updates that failed, of those that may not.
func (s *Service) update(ctx context.Context, updates []*api.ContainerUpdate) (failed []*api.ContainerUpdate) {
	for _, u := range updates {
		r := fromResources(u.GetLinux().GetResources())
		if r == nil {
			continue
		}
		if err := s.sandboxes.SetResources(ctx, u.GetContainerId(), r); err != nil {
			s.log.WithError(err).Warn("A container that an NRI plugin wants to update was not")
			if !u.GetIgnoreFailure() {
				failed = append(failed, u)
			}
		}
	}
	return failed
}

// unsolicited serves a plugin that wants updates without an event.
func (s *Service) unsolicited(ctx context.Context, updates []*api.ContainerUpdate) ([]*api.ContainerUpdate, error) {
	return s.update(ctx, updates), nil
}

// synchronize gives a plugin that joins the list of what there is.
func (s *Service) synchronize(ctx context.Context, deliver adaptation.SyncCB) error {
	pods, containers := s.sandboxes.Hooked()
	apiPods := make([]*api.PodSandbox, 0, len(pods))
	for _, p := range pods {
		apiPods = append(apiPods, pod(p))
	}
	apiContainers := make([]*api.Container, 0, len(containers))
	for _, c := range containers {
		apiContainers = append(apiContainers, s.container(c))
	}
	updates, err := deliver(ctx, apiPods, apiContainers)
	if err != nil {
		return err
	}
	s.update(ctx, updates)
	return nil
}

package sandbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/criserver/criserver/pkg/cri/spec"
)

const (
	// collectInterval is how often attachments are collected after the first time: what plugins lose, they lose slowly.
	collectInterval = time.Hour
	// checkInterval is how often those of running pods are looked at.
	checkInterval = 10 * time.Minute
)

// tendNetworks tells the network from time to time which attachments are valid, for plugins can lose track while the
// daemon lives, too: of a DEL that they were killed in, or of what another hand has removed. And it looks whether pods
// still have what they were given.
func (m *Manager) tendNetworks(ctx context.Context) {
	collect, check := time.NewTicker(collectInterval), time.NewTicker(checkInterval)
	defer collect.Stop()
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-collect.C:
			if err := m.sweepNetwork(ctx); err != nil && ctx.Err() == nil {
				m.log.WithError(err).Warn("Leftovers could not be removed")
			}
		case <-check.C:
			m.checkNetworks(ctx)
		}
	}
}

// checkNetworks finds the pods whose network is damaged. It reports each once; nothing is repaired, for what a pod's
// network is to be is up to the plugins.
func (m *Manager) checkNetworks(ctx context.Context) {
	before := m.DamagedNetworks()
	damaged := []string{}
	for _, p := range m.allPods() {
		s := p.snapshot()
		if s.State != PodReady || spec.HostNetwork(s.Config) {
			continue
		}
		err := m.o.Network.Check(ctx, m.attachment(p.id, s.Config))
		if ctx.Err() != nil {
			return
		}
		if err == nil || p.state() != PodReady { // it may have been stopped meanwhile
			continue
		}
		name := fmt.Sprintf("%s/%s", p.key.namespace, p.key.name)
		damaged = append(damaged, name)
		if !slices.Contains(before, name) {
			m.log.WithError(err).WithField("pod", p.id).Warn("The network of a pod is damaged; delete the pod to have it made anew")
		}
	}
	slices.SortFunc(damaged, strings.Compare)
	m.damaged.Store(&damaged)
}

// DamagedNetworks names the pods, NAMESPACE/NAME, whose network was damaged when it was last looked at, some minutes ago
// at the most.
func (m *Manager) DamagedNetworks() []string {
	if list := m.damaged.Load(); list != nil {
		return *list
	}
	return nil
}

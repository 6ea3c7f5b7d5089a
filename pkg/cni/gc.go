package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

// GC tells the plugins which attachments are valid, and removes those of the cache that are not among them.
//
// Removed is what has a record but is neither kept nor was made by this process, which is what a crash leaves; and, of
// the built-in network, addresses that nobody else can own. The plugins are told with the verb GC if the configuration
// asks for CNI 1.1; new attachments wait meanwhile. All is tried; the error joins what failed.
func (n *Network) GC(ctx context.Context, keep []Pod) error {
	valid := n.book.mine()
	for _, p := range keep {
		valid[p.ID] = true
	}
	var errs []error
	for _, p := range n.book.others(valid) {
		n.log.WithField("pod", p.ID).Info("cni: collecting the attachment of a pod that is gone")
		errs = append(errs, n.Teardown(ctx, p))
	}
	conf := n.current()
	if conf == nil {
		return errors.Join(errs...)
	}
	errs = append(errs, n.collectAddresses(ctx, conf, valid))
	if conf.speaksStatus() {
		errs = append(errs, n.collectPlugins(ctx, conf, valid))
	}
	return errors.Join(errs...)
}

// collectAddresses tears down what holds an address of the built-in network without a record: the node lost its power
// between the two files.
func (n *Network) collectAddresses(ctx context.Context, conf *config, valid map[string]bool) error {
	if conf.source != "" {
		return nil
	}
	var errs []error
	for _, plugin := range conf.list.Plugins {
		named, err := libcni.InjectConf(plugin, map[string]any{"name": conf.list.Name, "cniVersion": conf.list.CNIVersion})
		if err != nil {
			errs = append(errs, err)
			continue
		}
		held, err := n.plugins.Attachments(ctx, named.Bytes)
		errs = append(errs, err)
		for _, a := range held {
			if n.book.get(a.ContainerID) == nil && !valid[a.ContainerID] {
				errs = append(errs, n.Teardown(ctx, Pod{ID: a.ContainerID}))
			}
		}
	}
	return errors.Join(errs...)
}

// collectPlugins runs the verb GC (CNI SPEC 1.1 section 2), alone.
func (n *Network) collectPlugins(ctx context.Context, conf *config, valid map[string]bool) error {
	if err := n.busy.Acquire(ctx, maxBusy); err != nil {
		return fmt.Errorf("cni: wait for attachments under way: %w", err)
	}
	defer n.busy.Release(maxBusy)
	args := &libcni.GCArgs{ValidAttachments: []types.GCAttachment{}}
	for id := range n.book.mine() {
		valid[id] = true
	}
	for id := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	if err := n.bare.GCNetworkList(ctx, conf.list, args); err != nil {
		return fmt.Errorf("cni: collect garbage of network %q: %w", conf.list.Name, err)
	}
	return nil
}

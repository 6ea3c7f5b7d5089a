package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
)

// Check asks the plugins whether the pod's attachment is still as ADD left it (verb CHECK, CNI SPEC section 2), with the
// configuration of ADD. It is nil for a pod without an attachment, and for a network whose configuration is older than
// the verb or switches it off.
func (n *Network) Check(ctx context.Context, p Pod) error {
	rec := n.book.get(p.ID)
	if rec == nil {
		return nil
	}
	list, err := parse(rec.Config, n.confDir)
	if err != nil {
		return fmt.Errorf("cni: record of pod %s: %w", p.ID, err)
	}
	if err := n.busy.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("cni: wait for a garbage collection: %w", err)
	}
	defer n.busy.Release(1)
	err = n.libcni.CheckNetworkList(ctx, list, runtimeConf(&config{list: list}, rec.Pod))
	if err == nil || errors.Is(err, libcni.ErrorCheckNotSupp) {
		return nil
	}
	return fmt.Errorf("cni: the pod's attachment to network %q is damaged: %w: %w", list.Name, err, errdefs.ErrUnavailable)
}

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"

	"github.com/criserver/criserver/pkg/cni/builtin"
)

// ifName is the pod's interface, as every Kubernetes runtime names it.
const ifName = "eth0"

// rollbackTimeout is how long DEL may take after an ADD that failed, whose caller may have no time left.
const rollbackTimeout = 10 * time.Second

// Capabilities that are offered to plugins (CNI CONVENTIONS.md, and containerd's for the last two).
const (
	capPorts       = "portMappings"
	capBandwidth   = "bandwidth"
	capDNS         = "dns"
	capCgroup      = "cgroupPath"
	capAnnotations = "io.kubernetes.cri.pod-annotations"
)

// Setup sets the loopback interface of the pod's namespace up and runs ADD. On error it has run DEL; if that failed too,
// the error is a *LeftError. Its kinds are errdefs.ErrInvalidArgument (the pod), ErrAlreadyExists (a host port or address
// that another pod has) and ErrUnavailable (the network).
func (n *Network) Setup(ctx context.Context, p Pod) (Result, error) {
	conf := n.current()
	if conf == nil {
		return Result{}, n.Status()
	}
	rec, err := newRecord(p, conf)
	if err != nil {
		return Result{}, err
	}
	if err := n.busy.Acquire(ctx, 1); err != nil {
		return Result{}, fmt.Errorf("cni: wait for a garbage collection of network %q: %w", conf.list.Name, err)
	}
	defer n.busy.Release(1)
	if err := n.claim(ctx, rec); err != nil {
		return Result{}, err
	}
	result, err := n.attach(ctx, conf, rec)
	if err == nil {
		return result, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
	defer cancel()
	if undoErr := n.detach(undo, rec.Pod); undoErr != nil {
		return Result{}, &LeftError{fmt.Errorf("%w; and undoing it: %w", err, undoErr)}
	}
	return Result{}, err
}

// newRecord checks what the pod asks for.
func newRecord(p Pod, conf *config) (*record, error) {
	if err := utils.ValidateContainerID(p.ID); err != nil {
		return nil, fmt.Errorf("cni: pod id: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	for field, value := range map[string]string{"name": p.Name, "namespace": p.Namespace, "uid": p.UID} {
		// They become CNI_ARGS, "K=V;K=V".
		if strings.ContainsAny(value, ";=\x00\n") {
			return nil, fmt.Errorf("cni: metadata.%s %q contains one of ; = or a control character: %w", field, value, errdefs.ErrInvalidArgument)
		}
	}
	var err error
	if p.Ports, err = checkPorts(p.Ports); err != nil {
		return nil, err
	}
	if !conf.capable(capAnnotations) {
		p.Annotations = nil
	}
	return &record{Pod: p, Config: conf.list.Bytes, mine: true}, nil
}

// claim enters a record. A holder of one of its ports whose namespace is gone is torn down first: it has crashed, or the
// node was started again, and its rules would lead the port nowhere.
func (n *Network) claim(ctx context.Context, rec *record) error {
	for {
		err := n.book.claim(rec)
		var c *conflict
		if !errors.As(err, &c) || live(c.holder.Pod.NetNS) {
			return err
		}
		n.log.WithField("pod", c.holder.Pod.ID).Infof("cni: a dead pod holds host port %s; tearing it down", c.port)
		if gone := n.detach(ctx, c.holder.Pod); gone != nil {
			return fmt.Errorf("%w; it is dead, but cannot be torn down: %w", err, gone)
		}
	}
}

func (n *Network) attach(ctx context.Context, conf *config, rec *record) (Result, error) {
	unavailable := func(err error) (Result, error) {
		return Result{}, fmt.Errorf("cni: attach the pod to network %q: %w: %w", conf.list.Name, err, errdefs.ErrUnavailable)
	}
	if err := builtin.LoopbackUp(rec.Pod.NetNS); err != nil {
		return unavailable(fmt.Errorf("loopback interface: %w", err))
	}
	got, err := n.libcni.AddNetworkList(ctx, conf.list, runtimeConf(conf, rec.Pod))
	if err != nil {
		return unavailable(err)
	}
	result, err := readResult(got)
	if err != nil {
		return unavailable(err)
	}
	if n.prefer != "" {
		slices.SortStableFunc(result.IPs, func(a, b netip.Addr) int { return n.rank(a) - n.rank(b) })
	}
	return result, n.book.hold(rec.Pod.ID, result.IPs)
}

// rank is 0 for an address of the preferred family, else 1.
func (n *Network) rank(a netip.Addr) int {
	if a.Is4() == (n.prefer == "ipv4") {
		return 0
	}
	return 1
}

// readResult takes the addresses of the pod's interface out of a result, in their order.
func readResult(got types.Result) (Result, error) {
	result, err := current.NewResultFromResult(got)
	if err != nil {
		return Result{}, fmt.Errorf("result: %w", err)
	}
	var out Result
	for _, addr := range result.IPs {
		if i := addr.Interface; i != nil {
			if *i < 0 || *i >= len(result.Interfaces) {
				return Result{}, fmt.Errorf("result: address %s is of interface %d, which is not there", addr.Address.IP, *i)
			}
			if on := result.Interfaces[*i]; on.Name != ifName || on.Sandbox == "" {
				continue
			}
		}
		ip, ok := netip.AddrFromSlice(addr.Address.IP)
		if !ok {
			return Result{}, fmt.Errorf("result: %q is not an address", addr.Address.IP)
		}
		out.IPs = append(out.IPs, ip.Unmap())
	}
	if len(out.IPs) == 0 {
		return Result{}, fmt.Errorf("result: no address for %s; see the network's IPAM plugin", ifName)
	}
	out.Raw, err = json.Marshal(got)
	return out, err
}

// runtimeConf tells libcni about a pod.
func runtimeConf(conf *config, p Pod) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{
		ContainerID: p.ID,
		NetNS:       p.NetNS,
		IfName:      ifName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", p.Namespace},
			{"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ID},
			{"K8S_POD_UID", p.UID},
		},
		CapabilityArgs: capabilityArgs(conf, p),
	}
}

// capabilityArgs are the arguments that a plugin of the network declares, and that the pod has.
func capabilityArgs(conf *config, p Pod) map[string]any {
	args := map[string]any{}
	if len(p.Ports) > 0 {
		ports := make([]map[string]any, len(p.Ports))
		for i, m := range p.Ports {
			ports[i] = map[string]any{"hostPort": m.HostPort, "containerPort": m.ContainerPort, "protocol": m.Protocol, "hostIP": m.HostIP}
		}
		args[capPorts] = ports
	}
	if p.Ingress > 0 || p.Egress > 0 {
		// The burst is as large as the plugin allows, as both peers have it.
		bandwidth := map[string]any{}
		if p.Ingress > 0 {
			bandwidth["ingressRate"], bandwidth["ingressBurst"] = p.Ingress, int64(math.MaxUint32)
		}
		if p.Egress > 0 {
			bandwidth["egressRate"], bandwidth["egressBurst"] = p.Egress, int64(math.MaxUint32)
		}
		args[capBandwidth] = bandwidth
	}
	if len(p.DNSServers)+len(p.DNSSearches)+len(p.DNSOptions) > 0 {
		args[capDNS] = map[string]any{"servers": p.DNSServers, "searches": p.DNSSearches, "options": p.DNSOptions}
	}
	if p.CgroupPath != "" {
		args[capCgroup] = p.CgroupPath
	}
	if len(p.Annotations) > 0 {
		args[capAnnotations] = p.Annotations
	}
	maps.DeleteFunc(args, func(capability string, _ any) bool { return !conf.capable(capability) })
	return args
}

// Teardown runs DEL with the configuration that ADD ran with. It may be repeated, and works without a namespace.
// The caller is expected to drop the pod's namespace afterwards; an interface that outlives it is deleted a second later.
func (n *Network) Teardown(ctx context.Context, p Pod) error {
	if err := utils.ValidateContainerID(p.ID); err != nil {
		return fmt.Errorf("cni: pod id: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := n.busy.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("cni: wait for a garbage collection: %w", err)
	}
	defer n.busy.Release(1)
	return n.detach(ctx, p)
}

// detach runs DEL for what is known of a pod and forgets it.
func (n *Network) detach(ctx context.Context, p Pod) error {
	attachments, err := n.attachments(p)
	if err != nil {
		return err
	}
	for _, a := range attachments {
		if live(p.NetNS) {
			a.rt.NetNS = p.NetNS
		}
		if !live(a.rt.NetNS) {
			a.rt.NetNS = "" // DEL without a namespace (CNI SPEC section 2)
		}
		if err := n.libcni.DelNetworkList(ctx, a.list, a.rt); err != nil {
			return fmt.Errorf("cni: detach the pod from network %q: %w: %w", a.list.Name, err, errdefs.ErrUnavailable)
		}
	}
	return n.book.drop(p.ID)
}

// attachment is what DEL is run with.
type attachment struct {
	list *libcni.NetworkConfigList
	rt   *libcni.RuntimeConf
}

// attachments finds those of a pod: by its record; else in libcni's cache, which another runtime may have written; else
// there may be one to the network in force, of an ADD that nothing else is left of.
func (n *Network) attachments(p Pod) ([]attachment, error) {
	if rec := n.book.get(p.ID); rec != nil {
		list, err := parse(rec.Config, n.confDir)
		if err != nil {
			return nil, fmt.Errorf("cni: record of pod %s: %w", p.ID, err)
		}
		return []attachment{{list, runtimeConf(&config{list: list}, rec.Pod)}}, nil
	}
	cached, err := n.libcni.GetCachedAttachments(p.ID)
	if err != nil {
		return nil, fmt.Errorf("cni: results of pod %s: %w", p.ID, err)
	}
	var found []attachment
	for _, a := range cached {
		list, err := parse(a.Config, n.confDir)
		if err != nil {
			return nil, fmt.Errorf("cni: cached configuration of network %q for pod %s: %w", a.Network, p.ID, err)
		}
		found = append(found, attachment{list, &libcni.RuntimeConf{
			ContainerID: a.ContainerID, NetNS: a.NetNS, IfName: a.IfName, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs,
		}})
	}
	if conf := n.current(); found == nil && conf != nil {
		found = append(found, attachment{conf.list, runtimeConf(conf, p)})
	}
	return found, nil
}

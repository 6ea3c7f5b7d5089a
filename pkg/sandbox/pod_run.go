package sandbox

import (
	"context"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cni"
	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/libct/wire"
	"github.com/criserver/criserver/pkg/telemetry"
)

// createLimit bounds a creation; the kubelet waits four minutes for a pod at the most.
const createLimit = 4 * time.Minute

// RunPod creates a pod and returns its ID when it is ready. A pod of the same
// metadata and configuration that is being created or ready is joined; another
// one of the same metadata is ErrAlreadyExists. On error nothing of the pod is
// left, or at most a pod that is not ready, whose removal goes on.
func (m *Manager) RunPod(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	if err := spec.CheckPod(cfg); err != nil {
		return "", err
	}
	h, ok := m.o.Handlers[handler]
	if handler != "" && !ok {
		return "", fmt.Errorf("runtime_handler: there is no handler %.80q in the configuration: %w", handler, errdefs.ErrInvalidArgument)
	}
	if err := h.CheckPod(cfg, m.o.Host); err != nil {
		return "", err
	}
	p, fresh, err := m.addPod(cfg, handler)
	if err != nil {
		return "", err
	}
	telemetry.About(ctx, p.subject())
	if fresh {
		m.background(func(bg context.Context) {
			defer m.beginCreation()() // containers come next
			ctx, cancel := context.WithTimeout(telemetry.Carry(bg, ctx), createLimit)
			defer cancel()
			m.createPod(ctx, p)
		})
	}
	if err := p.made.wait(ctx, p.creating); err != nil {
		return "", err
	}
	return p.id, nil
}

// addPod finds the pod that a request means, or adds a new one and locks it.
func (m *Manager) addPod(cfg *runtimeapi.PodSandboxConfig, handler string) (p *pod, fresh bool, err error) {
	meta := cfg.GetMetadata()
	key := podKey{meta.GetName(), meta.GetNamespace(), meta.GetUid(), meta.GetAttempt()}
	config, err := newMessage(cfg)
	if err != nil {
		return nil, false, fmt.Errorf("config: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.podKeys[key]; ok {
		s := old.snapshot()
		if (s.State == PodCreating || s.State == PodReady) && s.Handler == handler && proto.Equal(s.Config, cfg) {
			return old, false, nil
		}
		return nil, false, fmt.Errorf("pod %s is %s and has the same metadata (name %q, namespace %q, uid %q, attempt %d): remove it first or use another attempt: %w",
			old.id, s.State, key.name, key.namespace, key.uid, key.attempt, errdefs.ErrAlreadyExists)
	}
	p = m.newPod(newID(), key, podRecord{State: PodCreating, Boot: m.boot, Config: config, Handler: handler, CreatedAt: now()})
	p.op <- struct{}{} // it is new: nobody holds it
	m.pods[p.id], m.podKeys[key] = p, p
	return p, true, nil
}

// createPod makes a pod that addPod added, or takes back what it made.
func (m *Manager) createPod(ctx context.Context, p *pod) {
	err := m.buildPod(ctx, p)
	if err == nil {
		p.op.unlock()
		p.made.finish(nil)
		m.podEvent(runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, p.id)
		m.podEvent(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, p.id)
		return
	}
	err = fmt.Errorf("run pod %s/%s: %w", p.key.namespace, p.key.name, err)
	m.log.WithError(err).WithField("pod", p.id).Warn("A pod was not created")
	left := m.setPodState(p, PodRemoving, nil)
	p.op.unlock()
	if left == nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
		left = m.removePod(ctx, p)
		cancel()
	}
	if left != nil {
		m.owe("pod", p.id, left, func(ctx context.Context) error { return m.removePod(ctx, p) })
	}
	p.made.finish(err)
}

// buildPod makes all that a pod consists of, stage by stage.
func (m *Manager) buildPod(ctx context.Context, p *pod) error {
	cfg := p.snapshot().Config
	var result cni.Result
	var initPid int
	stages := []stage{
		{"record", func(context.Context) error { return m.setPodState(p, PodCreating, nil) }},
		{"namespaces", func(ctx context.Context) error { return m.createNamespaces(ctx, p) }},
		{"files", func(context.Context) error { return m.createFiles(p) }},
		{"network", func(ctx context.Context) (err error) { result, err = m.attachNetwork(ctx, p); return err }},
		{"hosts file", func(context.Context) error { return m.writeHosts(p, result.IPs) }},
		{"init", func(ctx context.Context) (err error) {
			if sharesPID(cfg) {
				initPid, err = m.startInit(ctx, p.id, cfg)
			}
			return err
		}},
		{"plugins", func(ctx context.Context) error {
			p.mu.Lock() // they are told where it is; recorded with the state
			p.rec.IPs, p.rec.CNI, p.rec.InitPid = result.IPs, result.Raw, initPid
			p.mu.Unlock()
			return m.runHooks(ctx, p)
		}},
	}
	if err := pass(ctx, p.atStage, stages); err != nil {
		return err
	}
	return m.setPodState(p, PodReady, nil)
}

func (m *Manager) attachNetwork(ctx context.Context, p *pod) (cni.Result, error) {
	cfg := p.snapshot().Config
	if spec.HostNetwork(cfg) {
		return cni.Result{}, nil
	}
	select {
	case <-m.networkSwept:
	case <-ctx.Done():
		return cni.Result{}, fmt.Errorf("waiting for the removal of old attachments: %w", ctx.Err())
	}
	return m.o.Network.Setup(ctx, m.attachment(p.id, cfg))
}

// attachment is what the network is told about a pod.
func (m *Manager) attachment(id string, cfg *runtimeapi.PodSandboxConfig) cni.Pod {
	meta, dns := cfg.GetMetadata(), cfg.GetDnsConfig()
	a := cni.Pod{
		ID:          id,
		Name:        meta.GetName(),
		Namespace:   meta.GetNamespace(),
		UID:         meta.GetUid(),
		NetNS:       m.pinPath(id, "net"),
		Ingress:     bandwidth(cfg, "kubernetes.io/ingress-bandwidth"),
		Egress:      bandwidth(cfg, "kubernetes.io/egress-bandwidth"),
		DNSServers:  dns.GetServers(),
		DNSSearches: dns.GetSearches(),
		DNSOptions:  dns.GetOptions(),
		Annotations: cfg.GetAnnotations(),
		CgroupPath:  cfg.GetLinux().GetCgroupParent(),
	}
	for _, pm := range cfg.GetPortMappings() {
		if pm.GetHostPort() <= 0 {
			continue // CRI: no host port, nothing to map
		}
		a.Ports = append(a.Ports, cni.PortMapping{
			Protocol:      strings.ToLower(pm.GetProtocol().String()),
			ContainerPort: pm.GetContainerPort(),
			HostPort:      pm.GetHostPort(),
			HostIP:        pm.GetHostIp(),
		})
	}
	return a
}

// bandwidth reads a limit in bits per second from an annotation of Kubernetes'
// bandwidth support, a quantity such as "10M". What cannot be read is no limit.
func bandwidth(cfg *runtimeapi.PodSandboxConfig, annotation string) int64 {
	v := cfg.GetAnnotations()[annotation]
	digits := strings.TrimRight(v, "kMGTi")
	n, err := strconv.ParseInt(digits, 10, 64)
	unit, ok := units[v[len(digits):]]
	if err != nil || !ok || n < 0 || n > math.MaxInt64/unit {
		return 0
	}
	return n * unit
}

// units are the suffixes of Kubernetes' quantities that a bandwidth may have.
var units = map[string]int64{
	"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}

// initOOMScoreAdj makes the kernel spare an init, whose end is that of all containers of its pod, for as long as there is
// anything else to kill. It is what the kubelet means a pod's own process to have.
const initOOMScoreAdj = -998

// startInit starts pid 1 of the pod's shared PID namespace.
func (m *Manager) startInit(ctx context.Context, id string, cfg *runtimeapi.PodSandboxConfig) (int, error) {
	path, err := spec.CgroupsPath(cfg.GetLinux().GetCgroupParent(), id, m.o.Defaults.SystemdCgroup)
	if err != nil {
		return 0, err
	}
	who, err := spec.BuildInit(cfg, m.o.Host, m.o.Defaults)
	if err != nil {
		return 0, err
	}
	score := max(initOOMScoreAdj, m.o.Host.MinOOMScoreAdj)
	args := wire.InitArgs{
		CgroupPath: path, Systemd: m.o.Defaults.SystemdCgroup, OOMScoreAdj: &score,
		UID: who.UID, GID: who.GID, Groups: who.Groups,
	}
	flags := ownNamespaces(cfg)
	var join []*os.File
	defer func() {
		for _, f := range join {
			f.Close()
		}
	}()
	for _, k := range kinds {
		if flags&k.flag == 0 {
			continue
		}
		f, err := os.Open(m.pinPath(id, k.name))
		if err != nil {
			return 0, err
		}
		join = append(join, f)
		args.Join = append(args.Join, namespaceTypes[k.name])
	}
	return m.shim.StartInit(ctx, id, args, who.Seccomp, join...)
}

// namespaceTypes maps the kernel's names to those of the OCI runtime spec.
var namespaceTypes = map[string]specs.LinuxNamespaceType{
	"user": specs.UserNamespace,
	"net":  specs.NetworkNamespace,
	"ipc":  specs.IPCNamespace,
	"uts":  specs.UTSNamespace,
}

// ensureInit returns the pod's init, which a container that asks for the pod's
// PID namespace gets even if the pod itself did not ask for one. The caller
// holds no lock of the pod.
func (m *Manager) ensureInit(ctx context.Context, p *pod) (int, error) {
	if err := p.op.lock(ctx, "pod "+p.id); err != nil {
		return 0, err
	}
	defer p.op.unlock()
	s := p.snapshot()
	if s.State != PodReady {
		return 0, notReady(s)
	}
	if s.InitPid > 0 {
		return s.InitPid, nil
	}
	pid, err := m.startInit(ctx, p.id, s.Config)
	if err != nil {
		return 0, fmt.Errorf("start the init of pod %s: %w", p.id, err)
	}
	return pid, m.setPodState(p, PodReady, func(r *podRecord) { r.InitPid = pid })
}

func notReady(s Pod) error {
	return fmt.Errorf("pod %s is %s, not ready: %w", s.ID, s.State, errdefs.ErrFailedPrecondition)
}

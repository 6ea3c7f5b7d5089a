// Package spec makes the OCI runtime spec of a container: a pure function of
// the CRI configuration, the image's configuration and facts about the host.
//
// Think of it as a translation in two steps. CheckPod and CheckContainer judge a
// request by itself, before anything is made for it; Build then translates what
// was accepted. Build looks at the machine in one way only, through Host.Lookup,
// for what cannot be known otherwise: where a host path leads, which devices
// are there, what a seccomp profile says. With the same Input it gives the same
// spec, which golden files in testdata hold fast.
//
// Every error names the field of the request that is to blame, wraps
// errdefs.ErrInvalidArgument, and never shows the value of an environment
// variable. What a user may write freely (annotations, labels of pod, container
// or image) has no influence on the result, but for the few annotations of ours
// that the pod's runtime handler allows (handler.go).
//
// One rule per file: process.go (command, environment, user), capabilities.go,
// mounts.go, devices.go, namespaces.go, resources.go, cgroup.go, security.go
// (seccomp, AppArmor, SELinux), sysctl.go, signal.go, host.go (DetectHost).
package spec

import (
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/rootfs"
)

// Input is all that Build looks at. Nothing of it is changed, but the spec shares parts of it.
type Input struct {
	PodID, ID  string
	Pod        *runtimeapi.PodSandboxConfig
	Container  *runtimeapi.ContainerConfig
	Image      *ocispec.Image
	User       rootfs.User
	Rootfs     string // path of the mounted root filesystem
	Hostname   string // of the pod, for $HOSTNAME
	Namespaces Namespaces
	Files      Files
	Volumes    map[string]string // clean container path → directory on the host, for VOLUMEs of the image and for mounts of images
	Host       Host
	Defaults   Defaults
	Handler    Handler // of the pod
}

// Namespaces are paths of the pod's namespaces to join; empty means the host's (PID: one of its own,
// unless the container asks for the host's).
type Namespaces struct{ Net, IPC, UTS, PID, User string }

// Files are the pod's files on the host that are bound into each container; empty means none.
type Files struct{ Hosts, Hostname, ResolvConf, Shm string }

// Host are facts about this machine, found once by DetectHost.
type Host struct {
	CgroupV2       bool
	Controllers    map[string]bool // cgroup controllers that can be used: cpu, cpuset, memory, pids, hugetlb, ...
	SwapAccounting bool
	HugePageSizes  []string // as the kernel names them: "2MB", "1GB"
	Capabilities   []string // of our bounding set, "CAP_..."
	Seccomp        bool
	AppArmor       bool
	SELinux        bool
	MountSetattr   bool   // mount_setattr(2), which recursive read-only and idmapped mounts need: Linux 5.12
	MinOOMScoreAdj int    // lowest that we can set: -1000 with CAP_SYS_RESOURCE, else our own
	Lookup         Lookup // nil: this machine
}

// Defaults come from the configuration.
type Defaults struct {
	SystemdCgroup     bool
	PidsLimit         int64 // 0: none
	Ulimits           []specs.POSIXRlimit
	SeccompProfile    *specs.LinuxSeccomp // RuntimeDefault; nil: the built-in one for the container's capabilities
	UnprivilegedPorts bool
	AppArmorProfile   string // RuntimeDefault: name of a profile that is loaded; empty: none
	// StorageRoots are our own directories. A mount of a host path that holds one is made a slave of the host's, so that
	// the container does not keep the mounts of others from being unmounted.
	StorageRoots []string
}

// Build returns the spec. Its errors are ErrInvalidArgument and name the CRI field at fault.
func Build(in Input) (*specs.Spec, error) {
	if err := CheckContainer(in.Pod, in.Container); err != nil {
		return nil, err
	}
	if in.Image == nil {
		in.Image = &ocispec.Image{}
	}
	if in.Host.Lookup == nil {
		in.Host.Lookup = machine{}
	}
	b := builder{Input: in, sc: in.Container.GetLinux().GetSecurityContext()}
	s := &specs.Spec{
		Version:     specs.Version,
		Root:        &specs.Root{Path: in.Rootfs, Readonly: b.sc.GetReadonlyRootfs()},
		Annotations: b.annotations(),
		Linux:       &specs.Linux{},
	}
	// The order matters in one place: the seccomp profile depends on the capabilities.
	for _, step := range []func(*specs.Spec) error{
		b.process, b.capabilities, b.namespaces, b.mounts, b.resources, b.devices, b.security,
	} {
		if err := step(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// builder holds the input while one spec is made.
type builder struct {
	Input
	sc *runtimeapi.LinuxContainerSecurityContext
}

// annotations are for people and tools that read the spec, under the keys that containerd's CRI plugin uses. Those of the
// request are not among them: low-level runtimes and hooks take orders from annotations.
func (b *builder) annotations() map[string]string {
	meta := b.Pod.GetMetadata()
	image := b.Container.GetImage().GetUserSpecifiedImage()
	if image == "" {
		image = b.Container.GetImage().GetImage()
	}
	return map[string]string{
		"io.kubernetes.cri.container-type":    "container",
		"io.kubernetes.cri.container-name":    b.Container.GetMetadata().GetName(),
		"io.kubernetes.cri.image-name":        image,
		"io.kubernetes.cri.sandbox-id":        b.PodID,
		"io.kubernetes.cri.sandbox-name":      meta.GetName(),
		"io.kubernetes.cri.sandbox-namespace": meta.GetNamespace(),
		"io.kubernetes.cri.sandbox-uid":       meta.GetUid(),
	}
}

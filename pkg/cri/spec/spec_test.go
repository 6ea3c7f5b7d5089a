package spec

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/apparmor"
	"github.com/criserver/criserver/pkg/rootfs"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fake is a machine that is the same everywhere.
type fake struct {
	paths   map[string]string // path → where it leads
	shared  map[string]bool   // resolved paths on a shared mount
	slave   map[string]bool
	devices map[string][]Device
	files   map[string]string
}

func missing(p string) error { return &fs.PathError{Op: "lstat", Path: p, Err: syscall.ENOENT} }

func (f fake) Resolve(p string) (string, error) {
	if to, ok := f.paths[p]; ok {
		return to, nil
	}
	return "", missing(p)
}

func (f fake) Propagation(p string) (shared, slave bool, err error) {
	return f.shared[p], f.slave[p], nil
}

func (f fake) Devices(p string, limit int) ([]Device, error) {
	if d, ok := f.devices[p]; ok {
		return d, nil
	}
	return nil, missing(p)
}

func (f fake) ReadFile(p string, limit int64) ([]byte, error) {
	if text, ok := f.files[p]; ok {
		return []byte(text), nil
	}
	return nil, missing(p)
}

const (
	podID       = "1111111111111111111111111111111111111111111111111111111111111111"
	containerID = "2222222222222222222222222222222222222222222222222222222222222222"
)

// kubelet is what a kubelet sends for an ordinary container, with the kubelet's order of fields.
func kubelet() Input {
	host := fake{
		paths: map[string]string{
			"/pods/etc-hosts": "/pods/etc-hosts", "/pods/token": "/pods/token", "/pods/termination": "/pods/termination",
			"/data": "/disks/1", "/": "/", "/shared": "/shared", "/slave": "/slave", "/private": "/private", "/dev": "/dev",
		},
		shared: map[string]bool{"/shared": true, "/": true},
		slave:  map[string]bool{"/slave": true},
		devices: map[string][]Device{
			"/dev": {
				{Path: "/null", Type: "c", Major: 1, Minor: 3, Mode: 0o666},
				{Path: "/sda", Type: "b", Major: 8, Minor: 0, Mode: 0o660, GID: 6},
				{Path: "/snd/seq", Type: "c", Major: 116, Minor: 1, Mode: 0o660, GID: 29},
			},
			"/dev/fuse": {{Type: "c", Major: 10, Minor: 229, Mode: 0o666}},
			"/dev/snd": {
				{Path: "/seq", Type: "c", Major: 116, Minor: 1, Mode: 0o660, GID: 29},
				{Path: "/timer", Type: "c", Major: 116, Minor: 33, Mode: 0o660, GID: 29},
			},
			"/dev/empty": {},
		},
		files: map[string]string{
			"/seccomp/ok.json":         `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","no_such_call"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}`,
			"/seccomp/docker.json":     `{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"},{"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}}]}`,
			"/seccomp/empty.json":      ``,
			"/seccomp/braces.json":     `{}`,
			"/seccomp/broken.json":     `{"defaultAction":`,
			"/seccomp/action.json":     `{"defaultAction":"SCMP_ACT_MAYBE","syscalls":[]}`,
			"/seccomp/callaction.json": `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"ALLOW"}]}`,
			"/seccomp/errno.json":      `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","errnoRet":70000}]}`,
			"/seccomp/op.json":         `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"=="}]}]}`,
			"/seccomp/noname.json":     `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"action":"SCMP_ACT_ERRNO"}]}`,
			"/seccomp/trailing.json":   `{"defaultAction":"SCMP_ACT_ALLOW"} {}`,
			apparmor.Profiles:          "unconfined-ish (unconfined)\nmy profile (enforce)\ndocker-default (enforce)\n",
		},
	}
	return Input{
		PodID: podID, ID: containerID,
		Pod: &runtimeapi.PodSandboxConfig{
			Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web-0", Namespace: "shop", Uid: "d7b8c0de-0001", Attempt: 1},
			Hostname:     "web-0",
			LogDirectory: "/var/log/pods/shop_web-0_d7b8c0de-0001",
			Annotations:  map[string]string{"org.systemd.property.TimeoutStopUSec": "1", "run.oci.keep_original_groups": "1"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{
				CgroupParent: "/kubepods/burstable/podd7b8c0de-0001",
				SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
					Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
				},
			},
		},
		Container: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "web", Attempt: 2},
			Image:    &runtimeapi.ImageSpec{Image: "sha256:aaaa", UserSpecifiedImage: "registry.example/web:1"},
			Args:     []string{"--port", "80"},
			Envs: []*runtimeapi.KeyValue{
				{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("10.96.0.1")}, {Key: "MODE", Value: []byte("fast=1")},
			},
			Mounts: []*runtimeapi.Mount{
				{ContainerPath: "/var/run/secrets/kubernetes.io/serviceaccount", HostPath: "/pods/token", Readonly: true, RecursiveReadOnly: true},
				{ContainerPath: "/etc/hosts", HostPath: "/pods/etc-hosts"},
				{ContainerPath: "/dev/termination-log", HostPath: "/pods/termination"},
			},
			Annotations: map[string]string{"org.systemd.property.CollectMode": "'inactive'", "cdi.k8s.io/x": "vendor.example/gpu=0"},
			LogPath:     "web/2.log",
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{
					CpuPeriod: 100000, CpuQuota: 50000, CpuShares: 512, MemoryLimitInBytes: 128 << 20, OomScoreAdj: 978,
					HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "1GB"}},
				},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
					Capabilities:     &runtimeapi.Capability{},
					MaskedPaths:      []string{"/proc/acpi", "/proc/kcore", "/sys/firmware"},
					ReadonlyPaths:    []string{"/proc/sys", "/proc/sysrq-trigger"},
					NoNewPrivs:       true,
				},
			},
		},
		Image: &ocispec.Image{Config: ocispec.ImageConfig{
			Entrypoint: []string{"/web"}, Cmd: []string{"--port", "8080"}, WorkingDir: "/srv", StopSignal: "SIGQUIT",
			Env:    []string{"PATH=/usr/local/bin:/usr/bin:/bin", "MODE=slow", "VERSION=1"},
			Labels: map[string]string{"io.kubernetes.cri.container-type": "sandbox"},
		}},
		User:       rootfs.User{UID: 101, GID: 101, Groups: []uint32{101, 5000}, Name: "web", Home: "/srv"},
		Rootfs:     "/run/criserver/rootfs/" + containerID,
		Hostname:   "web-0",
		Namespaces: Namespaces{Net: "/run/ns/net", IPC: "/run/ns/ipc", UTS: "/run/ns/uts"},
		Files:      Files{Hosts: "/run/pod/hosts", Hostname: "/run/pod/hostname", ResolvConf: "/run/pod/resolv.conf", Shm: "/run/pod/shm"},
		Host: Host{
			Controllers:    map[string]bool{"cpu": true, "cpuset": true, "memory": true, "pids": true},
			SwapAccounting: true, HugePageSizes: []string{"2MB", "1GB"}, Seccomp: true, MountSetattr: true, MinOOMScoreAdj: -998, Lookup: host,
			Capabilities: append([]string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}, defaultCapabilities...),
		},
		Defaults: Defaults{
			PidsLimit:      4096,
			Ulimits:        []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 524288}},
			SeccompProfile: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno},
		},
	}
}

func (in *Input) context() *runtimeapi.LinuxContainerSecurityContext {
	return in.Container.Linux.SecurityContext
}

func (in *Input) podContext() *runtimeapi.LinuxSandboxSecurityContext {
	return in.Pod.Linux.SecurityContext
}

// both sets the namespaces of the pod and of the container.
func (in *Input) both(o *runtimeapi.NamespaceOption) {
	in.podContext().NamespaceOptions, in.context().NamespaceOptions = o, o
}

func userns() *runtimeapi.UserNamespace {
	m := []*runtimeapi.IDMapping{{HostId: 200000, Length: 65536}}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: m, Gids: m}
}

func TestGolden(t *testing.T) {
	privileged := func(in *Input) {
		in.podContext().Privileged, in.context().Privileged = true, true
		in.context().NoNewPrivs = false
	}
	v2 := func(in *Input) {
		in.Host.CgroupV2 = true
		in.Host.Controllers["hugetlb"] = true
		in.Container.Linux.Resources.Unified = map[string]string{"memory.high": "max", "memory.oom.group": "1"}
	}
	for name, change := range map[string]func(*Input){
		"plain":      func(in *Input) {},
		"v2":         v2,
		"privileged": privileged,
		"privileged-v2": func(in *Input) {
			privileged(in)
			v2(in)
		},
		"minimal": func(in *Input) {
			in.Pod = &runtimeapi.PodSandboxConfig{Metadata: in.Pod.Metadata}
			in.Container = &runtimeapi.ContainerConfig{
				Metadata: in.Container.Metadata, Image: &runtimeapi.ImageSpec{Image: "busybox"}, Command: []string{"top"},
			}
			in.Image, in.User, in.Files, in.Namespaces, in.Hostname = nil, rootfs.User{Home: "/"}, Files{}, Namespaces{}, ""
			in.Defaults = Defaults{}
		},
		"systemd": func(in *Input) {
			v2(in)
			in.Defaults.SystemdCgroup = true
			in.Pod.Linux.CgroupParent = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"
		},
		"userns": func(in *Input) {
			v2(in)
			in.both(&runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: userns()})
			in.Namespaces.User = "/run/ns/user"
			for _, m := range in.Container.Mounts {
				m.UidMappings, m.GidMappings = userns().Uids, userns().Gids
			}
		},
		"userns-hostnet": func(in *Input) {
			u := userns()
			u.Gids = []*runtimeapi.IDMapping{{HostId: 200000, Length: 5}}
			in.both(&runtimeapi.NamespaceOption{
				Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER, UsernsOptions: u,
			})
			in.Namespaces = Namespaces{IPC: "/run/ns/ipc", User: "/run/ns/user"}
			in.Pod.Hostname, in.Hostname = "", "node-1"
		},
		"host-namespaces": func(in *Input) {
			const node = runtimeapi.NamespaceMode_NODE
			in.both(&runtimeapi.NamespaceOption{Network: node, Pid: node, Ipc: node})
			in.Namespaces, in.Pod.Hostname, in.Hostname = Namespaces{}, "", "node-1"
		},
		"shared-pid": func(in *Input) {
			in.both(&runtimeapi.NamespaceOption{})
			in.Namespaces.PID = "/run/ns/pid"
		},
		"target-pid": func(in *Input) {
			in.context().NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "c1"}
			in.Namespaces.PID = "/proc/42/ns/pid"
		},
		"readonly": func(in *Input) {
			in.context().ReadonlyRootfs = true
			in.Container.Mounts = in.Container.Mounts[:1]
		},
		"tty": func(in *Input) {
			in.Container.Tty = true
			in.context().Seccomp = &runtimeapi.SecurityProfile{}
		},
		"devices": func(in *Input) {
			in.Container.Devices = []*runtimeapi.Device{
				{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "rwm"},
				{HostPath: "/dev/snd", ContainerPath: "/dev/sound/", Permissions: "r"},
			}
		},
		"mounts": func(in *Input) {
			const private, slave, shared = runtimeapi.MountPropagation_PROPAGATION_PRIVATE,
				runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
			in.Container.Mounts = []*runtimeapi.Mount{
				{ContainerPath: "/deep/er/still", HostPath: "/private", Readonly: true},
				{ContainerPath: "/deep", HostPath: "/data/", MountOptions: []string{"noexec", "nodev", "noexec", "nosuid"}},
				{ContainerPath: "/deep/er", HostPath: "/slave", Propagation: slave},
				{ContainerPath: "/shared", HostPath: "/shared", Propagation: shared},
				{ContainerPath: "/host", HostPath: "/", Propagation: private, Readonly: true},
				{ContainerPath: "/sys/fs/cgroup/", HostPath: "/private"},
				{ContainerPath: "/dev/shm", HostPath: "/private", SelinuxRelabel: true},
				{ContainerPath: "/proc/meminfo", HostPath: "/data", Readonly: true},
				{ContainerPath: "/model", Image: &runtimeapi.ImageSpec{Image: "sha256:bbbb"}, ImageSubPath: "weights"},
			}
			in.Host.Lookup.(fake).paths["/data/"] = "/disks/1"
			in.Defaults.StorageRoots = []string{"/var/lib/criserver", "/run/criserver"}
			in.Volumes = map[string]string{
				"/model": "/images/bbbb/weights", "/var/lib/db": "/volumes/1", "/var/cache": "/volumes/2", "/deep": "/volumes/3",
			}
		},
		"host-dev": func(in *Input) {
			privileged(in)
			in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/dev", HostPath: "/dev"}}
		},
		"ambient": func(in *Input) {
			in.context().Capabilities = &runtimeapi.Capability{
				AddCapabilities: []string{"net_admin"}, DropCapabilities: []string{"ALL"},
				AddAmbientCapabilities: []string{"CAP_NET_BIND_SERVICE"},
			}
		},
		"labels": func(in *Input) {
			in.Host.SELinux, in.Host.AppArmor, in.Defaults.AppArmorProfile = true, true, "criserver-default"
			in.podContext().SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0:c1,c2"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := kubelet()
			change(&in)
			if err := CheckPod(in.Pod); err != nil {
				t.Fatalf("CheckPod: %v", err)
			}
			s, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(s, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
				t.Errorf("differs from %s (-want +got):\n%s", file, diff)
			}
		})
	}
}

// A request that cannot be honoured is InvalidArgument and says which field is to blame.
func TestBuildRefuses(t *testing.T) {
	long := strings.Repeat("x", maxString)
	seccomp := func(file string) func(*Input) {
		return func(in *Input) {
			in.context().Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: file}
		}
	}
	mount := func(m *runtimeapi.Mount) func(*Input) {
		return func(in *Input) { in.Container.Mounts = []*runtimeapi.Mount{m} }
	}
	resources := func(r *runtimeapi.LinuxContainerResources) func(*Input) {
		return func(in *Input) { in.Container.Linux.Resources = r }
	}
	device := func(d *runtimeapi.Device) func(*Input) {
		return func(in *Input) { in.Container.Devices = []*runtimeapi.Device{d} }
	}
	appArmor := func(kind runtimeapi.SecurityProfile_ProfileType, ref string, host bool) func(*Input) {
		return func(in *Input) {
			in.Host.AppArmor = host
			in.context().Apparmor = &runtimeapi.SecurityProfile{ProfileType: kind, LocalhostRef: ref}
		}
	}
	const slave, shared = runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	for name, c := range map[string]struct {
		change func(*Input)
		want   string
	}{
		"no command at all": {func(in *Input) { in.Image.Config, in.Container.Args = ocispec.ImageConfig{}, nil }, "command: none is given"},
		"empty command":     {func(in *Input) { in.Container.Command = []string{""} }, "command: its first word is empty"},
		"NUL in CMD":        {func(in *Input) { in.Container.Args = nil; in.Image.Config.Cmd = []string{"a\x00b"} }, "command: word 1"},
		"NUL in image env":  {func(in *Input) { in.Image.Config.Env = []string{"A=\x00"} }, "image config: Env[0]"},
		"long argument":     {func(in *Input) { in.Container.Args = []string{long} }, "args: word 1"},
		"long variable": {func(in *Input) {
			in.Container.Envs = []*runtimeapi.KeyValue{{Key: "SECRET", Value: []byte(long)}}
		}, `envs: "SECRET" and its value have 131079 bytes`},
		"much environment": {func(in *Input) {
			for range 20 {
				in.Container.Envs = append(in.Container.Envs, &runtimeapi.KeyValue{Key: long[:len(in.Container.Envs)+1], Value: []byte(long[20:])})
			}
			for i, kv := range in.Container.Envs[2:] {
				kv.Key = strings.Repeat("K", i+1)
				kv.Value = kv.Value[:100000]
			}
			in.Container.Args = []string{strings.Repeat("y", 131000)}
		}, "envs: command line and environment have"},
		"relative WORKDIR":             {func(in *Input) { in.Image.Config.WorkingDir = "srv" }, "working_dir"},
		"WORKDIR of runtime's fds":     {func(in *Input) { in.Image.Config.WorkingDir = "/proc/self/fd/7/../8" }, "working_dir"},
		"bad STOPSIGNAL":               {func(in *Input) { in.Image.Config.StopSignal = "SIGFOO" }, "STOPSIGNAL of the image"},
		"negative STOPSIGNAL":          {func(in *Input) { in.Image.Config.StopSignal = "-1" }, "STOPSIGNAL of the image"},
		"large STOPSIGNAL":             {func(in *Input) { in.Image.Config.StopSignal = "65" }, "STOPSIGNAL of the image"},
		"odd STOPSIGNAL":               {func(in *Input) { in.Image.Config.StopSignal = "RTMIN+40" }, "STOPSIGNAL of the image"},
		"missing host path":            {mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/nowhere"}), `mounts[0].host_path: "/nowhere": no such file`},
		"slave of private":             {mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/private", Propagation: slave}), "mounts[0].propagation"},
		"shared of private":            {mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/private", Propagation: shared}), "mounts[0].propagation"},
		"shared of slave":              {mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/slave", Propagation: shared}), "mounts[0].propagation"},
		"image not mounted":            {mount(&runtimeapi.Mount{ContainerPath: "/x", Image: &runtimeapi.ImageSpec{Image: "i"}}), "mounts[0].image: image"},
		"missing device":               {device(&runtimeapi.Device{ContainerPath: "/dev/x", HostPath: "/dev/x", Permissions: "r"}), "devices[0].host_path"},
		"no device there":              {device(&runtimeapi.Device{ContainerPath: "/dev/x", HostPath: "/dev/empty", Permissions: "r"}), "devices[0].host_path"},
		"seccomp missing":              {seccomp("/seccomp/none.json"), "seccomp.localhost_ref"},
		"seccomp empty":                {seccomp("/seccomp/empty.json"), "seccomp.localhost_ref"},
		"seccomp braces":               {seccomp("/seccomp/braces.json"), "is empty"},
		"seccomp broken":               {seccomp("/seccomp/broken.json"), "is no JSON"},
		"seccomp trailing":             {seccomp("/seccomp/trailing.json"), "is no JSON"},
		"seccomp action":               {seccomp("/seccomp/action.json"), "unknown defaultAction"},
		"seccomp action of rule":       {seccomp("/seccomp/callaction.json"), "unknown action"},
		"seccomp errno":                {seccomp("/seccomp/errno.json"), "is no error number"},
		"seccomp operator":             {seccomp("/seccomp/op.json"), "unknown argument or operator"},
		"seccomp without names":        {seccomp("/seccomp/noname.json"), "has no names"},
		"seccomp relative":             {seccomp("ok.json"), "is not absolute"},
		"seccomp upwards":              {seccomp("/seccomp/../ok.json"), `has a ".."`},
		"seccomp without file":         {seccomp(""), "seccomp.localhost_ref: is missing"},
		"seccomp on a host without":    {func(in *Input) { seccomp("/seccomp/ok.json")(in); in.Host.Seccomp = false }, "has no seccomp"},
		"deprecated seccomp":           {func(in *Input) { in.context().SeccompProfilePath = "localhost//seccomp/none.json" }, "seccomp.localhost_ref"},
		"unknown deprecated seccomp":   {func(in *Input) { in.context().SeccompProfilePath = "default" }, "unknown profile"},
		"apparmor on a host without":   {appArmor(runtimeapi.SecurityProfile_RuntimeDefault, "", false), "has no AppArmor"},
		"apparmor not loaded":          {appArmor(runtimeapi.SecurityProfile_Localhost, "localhost/none", true), "is not loaded"},
		"apparmor prefix of a profile": {appArmor(runtimeapi.SecurityProfile_Localhost, "my", true), "is not loaded"},
		"apparmor without default":     {appArmor(runtimeapi.SecurityProfile_RuntimeDefault, "", true), "no default profile"},
		"apparmor ref without use":     {appArmor(runtimeapi.SecurityProfile_Unconfined, "x", true), "only for Localhost"},
		"deprecated apparmor":          {func(in *Input) { in.context().ApparmorProfile = "localhost/x" }, "has no AppArmor"},
		"hugepages without controller": {resources(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}}), "hugepage_limits[0]: this host has no hugetlb"},
		"no such controller":           {func(in *Input) { delete(in.Host.Controllers, "memory") }, "memory_limit_in_bytes: this host has no memory"},
		"cgroup parent upwards":        {func(in *Input) { in.Pod.Linux.CgroupParent = "../../x" }, "linux.cgroup_parent"},
		"cgroup parent no slice":       {func(in *Input) { in.Defaults.SystemdCgroup = true; in.Pod.Linux.CgroupParent = "a.slice/b" }, "linux.cgroup_parent"},
	} {
		t.Run(name, func(t *testing.T) {
			in := kubelet()
			c.change(&in)
			s, err := Build(in)
			if err == nil {
				t.Fatalf("built %+v", s)
			}
			if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %q; want InvalidArgument with %q", err, c.want)
			}
			if len(err.Error()) > 600 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}

// rows: K-05
func TestCommand(t *testing.T) {
	for _, c := range []struct{ entrypoint, cmd, command, args, want string }{
		{"e", "c", "", "", "e c"},
		{"e", "c", "C", "", "C"},
		{"e", "c", "", "A", "e A"},
		{"e", "c", "C", "A", "C A"},
		{"", "c", "", "", "c"},
		{"e", "", "", "", "e"},
		{"", "", "", "A", "A"},
	} {
		in := kubelet()
		in.Image.Config.Entrypoint, in.Image.Config.Cmd = strings.Fields(c.entrypoint), strings.Fields(c.cmd)
		in.Container.Command, in.Container.Args = strings.Fields(c.command), strings.Fields(c.args)
		s, err := Build(in)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
		} else if got := strings.Join(s.Process.Args, " "); got != c.want {
			t.Errorf("%+v: got %q", c, got)
		}
	}
}

// rows: K-07, K-09, K-15
func TestEnvironment(t *testing.T) {
	in := kubelet()
	in.Container.Tty = true
	in.Image.Config.Env = []string{"A=image", "B=image", "C", "=D", "TERM=dumb", "A=image2", "HOME=/image"}
	in.Container.Envs = []*runtimeapi.KeyValue{
		{Key: "A", Value: []byte("x=\ufffd\t\u00ff\n")}, {Key: "E"}, {Key: "HOSTNAME", Value: []byte("mine")}, {Key: "E", Value: []byte("2")},
	}
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{defaultPath, "TERM=dumb", "HOSTNAME=mine", "HOME=/image", "A=x=\ufffd\t\u00ff\n", "B=image", "E=2"}
	if !slices.Equal(s.Process.Env, want) {
		t.Errorf("got %q\nwant %q", s.Process.Env, want)
	}
}

// rows: C-01
func TestCapabilities(t *testing.T) {
	in := kubelet()
	all := slices.Sorted(slices.Values(in.Host.Capabilities))
	without := func(set []string, drop ...string) []string {
		return slices.DeleteFunc(slices.Clone(set), func(c string) bool { return slices.Contains(drop, c) })
	}
	for _, c := range []struct {
		add, drop []string
		want      []string
	}{
		{nil, nil, slices.Clone(defaultCapabilities)},
		{[]string{"sys_admin"}, nil, append(slices.Clone(defaultCapabilities), "CAP_SYS_ADMIN")},
		{[]string{"CAP_SYS_ADMIN"}, []string{"CAP_CHOWN"}, append(without(defaultCapabilities, "CAP_CHOWN"), "CAP_SYS_ADMIN")},
		{[]string{"ALL"}, nil, all},
		{[]string{"all"}, []string{"Chown", "cap_sys_admin"}, without(all, "CAP_CHOWN", "CAP_SYS_ADMIN")},
		{nil, []string{"ALL"}, nil},
		{[]string{"CHOWN"}, []string{"ALL"}, []string{"CAP_CHOWN"}},
		{[]string{"ALL", "CHOWN"}, []string{"ALL"}, []string{"CAP_CHOWN"}},
		{[]string{"CHOWN"}, []string{"CHOWN"}, without(defaultCapabilities, "CAP_CHOWN")},
		{[]string{"SYS_RESOURCE"}, nil, slices.Clone(defaultCapabilities)}, // this host does not have it
	} {
		in := kubelet()
		in.context().Capabilities = &runtimeapi.Capability{AddCapabilities: c.add, DropCapabilities: c.drop}
		s, err := Build(in)
		if err != nil {
			t.Errorf("add %v drop %v: %v", c.add, c.drop, err)
			continue
		}
		got := s.Process.Capabilities
		slices.Sort(c.want)
		if !slices.Equal(got.Bounding, c.want) || !slices.Equal(got.Effective, c.want) || !slices.Equal(got.Permitted, c.want) {
			t.Errorf("add %v drop %v: got %v want %v", c.add, c.drop, got.Bounding, c.want)
		}
		if got.Inheritable != nil || got.Ambient != nil {
			t.Errorf("add %v drop %v: inheritable %v ambient %v", c.add, c.drop, got.Inheritable, got.Ambient)
		}
	}
}

// The built-in profile follows the capabilities, and nothing of one container's reaches the next.
// rows: C-19
func TestDefaultSeccomp(t *testing.T) {
	allows := func(s *specs.Spec, call string) bool {
		return slices.ContainsFunc(s.Linux.Seccomp.Syscalls, func(r specs.LinuxSyscall) bool {
			return r.Action == specs.ActAllow && len(r.Args) == 0 && slices.Contains(r.Names, call)
		})
	}
	for _, admin := range []bool{false, true, false} {
		in := kubelet()
		in.Defaults.SeccompProfile = nil
		in.context().Seccomp = &runtimeapi.SecurityProfile{}
		if admin {
			in.context().Capabilities.AddCapabilities = []string{"SYS_ADMIN"}
		}
		s, err := Build(in)
		if err != nil {
			t.Fatal(err)
		}
		if s.Linux.Seccomp.DefaultAction != specs.ActErrno || !allows(s, "read") {
			t.Errorf("default action %s, read allowed %v", s.Linux.Seccomp.DefaultAction, allows(s, "read"))
		}
		if allows(s, "mount") != admin {
			t.Errorf("with CAP_SYS_ADMIN %v: mount allowed %v", admin, !admin)
		}
	}
}

// rows: C-18, C-19, C-20, C-24
func TestSeccompProfiles(t *testing.T) {
	const runtime, unconfined, local = runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined, runtimeapi.SecurityProfile_Localhost
	for name, c := range map[string]struct {
		field *runtimeapi.SecurityProfile
		old   string
		want  specs.LinuxSeccompAction // "" for unconfined
		rules int
	}{
		"nothing":               {nil, "", "", 0},
		"unconfined":            {&runtimeapi.SecurityProfile{ProfileType: unconfined}, "runtime/default", "", 0},
		"runtime default":       {&runtimeapi.SecurityProfile{ProfileType: runtime}, "", specs.ActErrno, 0},
		"localhost":             {&runtimeapi.SecurityProfile{ProfileType: local, LocalhostRef: "/seccomp/ok.json"}, "", specs.ActAllow, 1},
		"localhost, Docker's":   {&runtimeapi.SecurityProfile{ProfileType: local, LocalhostRef: "/seccomp/docker.json"}, "", specs.ActErrno, 1},
		"deprecated default":    {nil, "runtime/default", specs.ActErrno, 0},
		"deprecated unconfined": {nil, "unconfined", "", 0},
		"deprecated localhost":  {nil, "localhost//seccomp/ok.json", specs.ActAllow, 1},
	} {
		in := kubelet()
		in.context().Seccomp, in.context().SeccompProfilePath = c.field, c.old
		s, err := Build(in)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var got specs.LinuxSeccomp
		if s.Linux.Seccomp != nil {
			got = *s.Linux.Seccomp
		}
		if got.DefaultAction != c.want || len(got.Syscalls) != c.rules {
			t.Errorf("%s: got %+v", name, got)
		}
	}
	in := kubelet()
	in.podContext().Privileged, in.context().Privileged, in.Host.Seccomp = true, true, false
	in.context().Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtime}
	if s, err := Build(in); err != nil || s.Linux.Seccomp != nil {
		t.Errorf("privileged: %v", err)
	}
}

func TestAppArmor(t *testing.T) {
	const runtime, unconfined, local = runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined, runtimeapi.SecurityProfile_Localhost
	for name, c := range map[string]struct {
		field      *runtimeapi.SecurityProfile
		old        string
		privileged bool
		want       string
	}{
		"nothing":                {nil, "", false, "ours"},
		"default":                {&runtimeapi.SecurityProfile{ProfileType: runtime}, "unconfined", false, "ours"},
		"unconfined":             {&runtimeapi.SecurityProfile{ProfileType: unconfined}, "", false, ""},
		"local":                  {&runtimeapi.SecurityProfile{ProfileType: local, LocalhostRef: "docker-default"}, "", false, "docker-default"},
		"local with prefix":      {&runtimeapi.SecurityProfile{ProfileType: local, LocalhostRef: "localhost/my profile"}, "", false, "my profile"},
		"deprecated local":       {nil, "localhost/docker-default", false, "docker-default"},
		"privileged":             {&runtimeapi.SecurityProfile{ProfileType: local, LocalhostRef: "docker-default"}, "", true, ""},
		"deprecated default":     {nil, "runtime/default", false, "ours"},
		"deprecated, unconfined": {nil, "unconfined", false, ""},
	} {
		in := kubelet()
		in.Host.AppArmor, in.Defaults.AppArmorProfile = true, "ours"
		in.podContext().Privileged, in.context().Privileged = c.privileged, c.privileged
		in.context().Apparmor, in.context().ApparmorProfile = c.field, c.old
		s, err := Build(in)
		if err != nil || s.Process.ApparmorProfile != c.want {
			t.Errorf("%s: got %+v, %v; want %q", name, s, err, c.want)
		}
	}
}

// What users may write freely has no influence.
// rows: S-16
func TestAnnotationsAreNotOrders(t *testing.T) {
	plain := kubelet()
	plain.Pod.Annotations, plain.Container.Annotations, plain.Image.Config.Labels = nil, nil, nil
	want, err := Build(plain)
	if err != nil {
		t.Fatal(err)
	}
	orders := map[string]string{}
	for _, k := range []string{
		"org.systemd.property.TimeoutStopUSec", "run.oci.handler", "io.kubernetes.cri-o.Devices", "io.katacontainers.config.hypervisor.path",
		"cdi.k8s.io/gpu", "io.kubernetes.cri.container-type", "io.kubernetes.cri.blockio-class", "seccomp.security.alpha.kubernetes.io/pod",
	} {
		orders[k] = "vendor.example/gpu=0"
	}
	in := kubelet()
	in.Pod.Annotations, in.Container.Annotations, in.Image.Config.Labels = orders, orders, orders
	in.Pod.Labels, in.Container.Labels, in.Container.Image.Annotations = orders, orders, orders
	got, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestProcess(t *testing.T) {
	s, err := Build(kubelet())
	if err != nil {
		t.Fatal(err)
	}
	before := slices.Clone(s.Process.Env)
	p := Process(s, []string{"sh", "-c", "true"}, true)
	if !slices.Equal(p.Args, []string{"sh", "-c", "true"}) || !p.Terminal || p.Env[len(p.Env)-1] != defaultTerm {
		t.Errorf("got %+v", p)
	}
	if p.User.UID != 101 || !p.NoNewPrivileges || p.Capabilities == nil || p.Cwd != "/srv" {
		t.Errorf("exec is not confined as its container: %+v", p)
	}
	if !slices.Equal(before, s.Process.Env) || s.Process.Terminal || s.Process.Args[0] != "/web" {
		t.Errorf("the container's process changed: %+v", s.Process)
	}
	if p := Process(s, []string{"true"}, false); p.Terminal || slices.Contains(p.Env, defaultTerm) {
		t.Errorf("without a terminal: %+v", p)
	}
}

// rows: X-15, P-016a
func TestPrivateMountOfStorage(t *testing.T) {
	in := kubelet()
	in.Defaults.StorageRoots = []string{"/var/lib/criserver"}
	in.Container.Mounts = []*runtimeapi.Mount{{ContainerPath: "/host", HostPath: "/"}, {ContainerPath: "/data", HostPath: "/data"}}
	s, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range s.Mounts {
		switch {
		case m.Destination == "/host" && !slices.Contains(m.Options, "rslave"), m.Destination == "/data" && !slices.Contains(m.Options, "rprivate"):
			t.Errorf("%s: %v", m.Destination, m.Options)
		}
	}
}

// rows: K-22
func TestVolumePaths(t *testing.T) {
	image := func(paths ...string) *ocispec.Image {
		m := map[string]struct{}{}
		for _, p := range paths {
			m[p] = struct{}{}
		}
		return &ocispec.Image{Config: ocispec.ImageConfig{Volumes: m}}
	}
	cfg := &runtimeapi.ContainerConfig{Mounts: []*runtimeapi.Mount{{ContainerPath: "/data/"}}}
	got, err := VolumePaths(image("/data", "/b/", "/../../a", "c/d", "/b"), cfg)
	if want := []string{"/a", "/b", "/c/d"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	many := make([]string, 10000)
	for i := range many {
		many[i] = "/" + strings.Repeat("v", i%100+1) + string(rune('a'+i/100%26)) + strings.Repeat("w", i/2600+1)
	}
	for _, bad := range []*ocispec.Image{image("/proc"), image("/proc/x"), image("/x/.."), image("/a\x00b"), image(many...)} {
		if got, err := VolumePaths(bad, cfg); !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "VOLUME of the image") {
			t.Errorf("%d volumes: got %v, %v", len(bad.Config.Volumes), len(got), err)
		}
	}
	if got, err := VolumePaths(nil, cfg); got != nil || err != nil {
		t.Errorf("no image: %v, %v", got, err)
	}
}

func BenchmarkBuild(b *testing.B) {
	in := kubelet()
	in.context().Seccomp = nil
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(in); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBuildSeccomp(b *testing.B) {
	in := kubelet()
	in.Defaults.SeccompProfile = nil
	in.context().Seccomp = &runtimeapi.SecurityProfile{}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(in); err != nil {
			b.Fatal(err)
		}
	}
}

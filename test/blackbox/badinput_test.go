package blackbox

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Each of these pods is refused with a message that names the field, and nothing of it is left.
// rows: S-01, SS-03, SS-07, N-09, P-009, P-036a, GAP-28
func TestBadPods(t *testing.T) {
	ours(t)
	for _, c := range []struct {
		name  string
		spoil func(*runtimeapi.PodSandboxConfig)
		field string
	}{
		{"no metadata", func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }, "metadata"},
		{"no name", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Name = "" }, "metadata.name"},
		{"no namespace", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Namespace = "" }, "metadata.namespace"},
		{"no uid", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "" }, "metadata.uid"},
		{"a relative log directory", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "logs" }, "log_directory"},
		{"a log directory that climbs", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "/var/log/../../etc" }, "log_directory"},
		{"a host name that is none", func(c *runtimeapi.PodSandboxConfig) { c.Hostname = "not a name" }, "hostname"},
		{"a host name that is too long", func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("a", 65) }, "hostname"},
		{"a newline in a search domain", func(c *runtimeapi.PodSandboxConfig) {
			c.DnsConfig = &runtimeapi.DNSConfig{Searches: []string{"a\nnameserver 6.6.6.6"}}
		}, "dns_config.searches"},
		{"a port out of range", func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 70000, HostPort: 80}}
		}, "port_mappings"},
		{"a port twice", func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 28090}, {ContainerPort: 81, HostPort: 28090}}
		}, "port_mappings"},
		{"an address that is none", func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 28090, HostIp: "300.1.1.1"}}
		}, "port_mappings"},
		{"a cgroup that climbs", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" }, "cgroup_parent"},
		{"a sysctl of the node", func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} }, "sysctls"},
		{"a sysctl that climbs", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net/../../../etc/x": "1"}
		}, "sysctls"},
		{"a group without a user", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 5}
		}, "run_as_group"},
		{"a user namespace without a map", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}
		}, "userns_options"},
		{"a user outside of the map", func(c *runtimeapi.PodSandboxConfig) {
			sc := c.Linux.SecurityContext
			sc.NamespaceOptions, sc.RunAsUser = &namespaces{Pid: modePod, UsernsOptions: users(300000)}, &runtimeapi.Int64Value{Value: 1 << 20}
		}, "run_as_user"},
		{"a seccomp profile for its init that is not there", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = modePod
			c.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{
				ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/nonexistent.json",
			}
		}, "seccomp.localhost_ref"},
		{"the target of a pod", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
		}, "namespace_options.pid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			leavesNothing(t)
			cfg := podConfig("bad", t.TempDir())
			c.spoil(cfg)
			r, err := n.Runtimes.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
			refused(t, err, codes.InvalidArgument, c.field)
			if err == nil {
				(&pod{t: t, node: n, ctx: t.Context(), id: r.PodSandboxId}).remove()
			}
		})
	}
}

// The same for containers.
// rows: K-01, K-12, K-17, M-04, M-24, C-01, C-10, C-11, C-20, P-009a, P-019, P-120, GAP-28
func TestBadContainers(t *testing.T) {
	ours(t)
	p := newPod(t)
	mount := func(m *runtimeapi.Mount) containerTweak { return mounts(m) }
	for _, c := range []struct {
		name  string
		spoil containerTweak
		field string
	}{
		{"no metadata", func(c *runtimeapi.ContainerConfig) { c.Metadata = nil }, "metadata"},
		{"no name", func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "" }, "metadata.name"},
		{"no image", func(c *runtimeapi.ContainerConfig) { c.Image = nil }, "image"},
		{"a log path that climbs", func(c *runtimeapi.ContainerConfig) { c.LogPath = "../x" }, "log_path"},
		{"an absolute log path", func(c *runtimeapi.ContainerConfig) { c.LogPath = "/etc/x" }, "log_path"},
		{"an environment key with =", func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A=B", Value: []byte("x")}}
		}, "envs"},
		{"a NUL in the environment", func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("x\x00y")}}
		}, "envs"},
		{"a NUL in the command", func(c *runtimeapi.ContainerConfig) { c.Command = []string{"a\x00b"} }, "command"},
		{"a relative working directory", func(c *runtimeapi.ContainerConfig) { c.WorkingDir = "a/b" }, "working_dir"},
		{"a mount without a path", mount(&runtimeapi.Mount{HostPath: "/tmp"}), "mounts"},
		{"a mount on a relative path", mount(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "x"}), "container_path"},
		{"a mount on the root", mount(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "/"}), "container_path"},
		{"a mount over /proc", mount(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "/proc/self"}), "container_path"},
		{"recursive read-only without read-only", mount(&runtimeapi.Mount{HostPath: "/tmp", ContainerPath: "/x", RecursiveReadOnly: true}), "recursive_read_only"},
		{"a device that is not there", func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/no-such-device", ContainerPath: "/dev/x", Permissions: "rwm"}}
		}, "devices"},
		{"permissions that are none", func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "q"}}
		}, "permissions"},
		{"an unknown capability", security(func(s *securityContext) {
			s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"CAP_FLY"}}
		}), "capabilities"},
		{"a group without a user", security(func(s *securityContext) { s.RunAsGroup = &runtimeapi.Int64Value{Value: 5} }), "run_as_group"},
		{"a user below zero", security(func(s *securityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: -1} }), "run_as_user"},
		{"a user out of range", security(func(s *securityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1 << 32} }), "run_as_user"},
		{"a user that the image does not have", security(func(s *securityContext) { s.RunAsUsername = "nosuchuser" }), "nosuchuser"},
		{"a profile that is not there", security(func(s *securityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/no/such.json"}
		}), "seccomp"},
		{"processors that are none", resources(func(r *runtimeapi.LinuxContainerResources) { r.CpusetCpus = "a-b" }), "cpuset_cpus"},
		{"too little memory", resources(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes = -5 }), "memory_limit_in_bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p.in(t)
			leavesNothing(t)
			bad, err := p.tryCreate(asleep(), c.spoil)
			refused(t, err, codes.InvalidArgument, c.field)
			if err == nil {
				bad.remove()
			}
		})
	}
}

// rows: K-02, R-08
func TestUnknownImage(t *testing.T) {
	p := newPod(t)
	_, err := p.tryCreate(image("example.org/never-pulled:1"))
	refused(t, err, codes.NotFound, "example.org/never-pulled:1")
}

// IDs that name nothing, or that try to be paths.
// rows: D-19, D-20, D-21, P-007a, P-174
func TestUnknownIDs(t *testing.T) {
	ours(t)
	leavesNothing(t)
	ctx := t.Context()
	for _, id := range []string{"no-such-id", strings.Repeat("0", 64), "../../etc", "a/b", strings.Repeat("x", 100000), "\xe2\x80\xae"} {
		short := id[:min(len(id), 20)]
		for call, err := range map[string]error{
			"PodSandboxStatus": second(n.Runtimes.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})),
			"ContainerStatus":  second(n.Runtimes.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})),
			"StartContainer":   second(n.Runtimes.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})),
			"ExecSync":         second(n.Runtimes.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})),
			"Exec":             second(n.Runtimes.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true})),
			"Attach":           second(n.Runtimes.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdout: true})),
			"PortForward":      second(n.Runtimes.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: id, Port: []int32{80}})),
			"ContainerStats":   second(n.Runtimes.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id})),
			"ReopenLog":        second(n.Runtimes.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})),
			"CreateContainer":  second(n.Runtimes.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: id, Config: containerConfig("c"), SandboxConfig: podConfig("p", "/tmp")})),
		} {
			if code := status.Code(err); code != codes.NotFound && code != codes.InvalidArgument {
				t.Errorf("%s of %q: %v", call, short, err)
			}
		}
		for call, err := range map[string]error{ // the kubelet repeats these until they succeed
			"StopPodSandbox":   second(n.Runtimes.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})),
			"RemovePodSandbox": second(n.Runtimes.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})),
			"StopContainer":    second(n.Runtimes.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})),
			"RemoveContainer":  second(n.Runtimes.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})),
		} {
			if err != nil {
				t.Errorf("%s of %q: %v", call, short, err)
			}
		}
	}
}

func second[T any](_ T, err error) error { return err }

// Calls without anything in them are answered, one way or the other.
// rows: D-26
func TestEmptyCalls(t *testing.T) {
	leavesNothing(t)
	ctx := t.Context()
	for call, err := range map[string]error{
		"RunPodSandbox":            second(n.Runtimes.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{})),
		"CreateContainer":          second(n.Runtimes.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{})),
		"StartContainer":           second(n.Runtimes.StartContainer(ctx, &runtimeapi.StartContainerRequest{})),
		"ExecSync":                 second(n.Runtimes.ExecSync(ctx, &runtimeapi.ExecSyncRequest{})),
		"Exec":                     second(n.Runtimes.Exec(ctx, &runtimeapi.ExecRequest{})),
		"Attach":                   second(n.Runtimes.Attach(ctx, &runtimeapi.AttachRequest{})),
		"PortForward":              second(n.Runtimes.PortForward(ctx, &runtimeapi.PortForwardRequest{})),
		"UpdateContainerResources": second(n.Runtimes.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{})),
		"PullImage":                second(n.Images.PullImage(ctx, &runtimeapi.PullImageRequest{})),
	} {
		if err == nil {
			t.Errorf("%s with nothing in it succeeded", call)
		}
		if code := status.Code(err); code == codes.Internal || code == codes.Unavailable {
			t.Errorf("%s: %v", call, err)
		}
	}
}

// Streams that cannot be are refused before a URL is given.
// rows: R-18
func TestInvalidStreams(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(asleep())
	for name, err := range map[string]error{
		"no stream at all":       second(n.Runtimes.Exec(p.ctx, &runtimeapi.ExecRequest{ContainerId: c.id, Cmd: []string{"true"}})),
		"a terminal with stderr": second(n.Runtimes.Exec(p.ctx, &runtimeapi.ExecRequest{ContainerId: c.id, Cmd: []string{"true"}, Tty: true, Stdout: true, Stderr: true})),
		"no command":             second(n.Runtimes.Exec(p.ctx, &runtimeapi.ExecRequest{ContainerId: c.id, Stdout: true})),
	} {
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

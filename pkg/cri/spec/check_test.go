package spec

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// expect fails unless err is of the kind, names the field and has no length that fills a log.
func expect(t *testing.T, err, kind error, field string) {
	t.Helper()
	if err == nil {
		t.Errorf("accepted; want an error of %s", field)
		return
	}
	if !errors.Is(err, kind) || !strings.HasPrefix(err.Error(), field) {
		t.Errorf("error %q; want %v of %s", err, kind, field)
	}
	if len(err.Error()) > 600 || strings.ContainsAny(err.Error(), "\n\x00") {
		t.Errorf("error of %d bytes, or with control characters: %.200q", len(err.Error()), err)
	}
}

func TestCheckPodAccepts(t *testing.T) {
	const node = runtimeapi.NamespaceMode_NODE
	for name, change := range map[string]func(*runtimeapi.PodSandboxConfig){
		"kubelet": func(c *runtimeapi.PodSandboxConfig) {},
		"no linux": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux, c.Hostname, c.LogDirectory = nil, "", ""
		},
		"dns": func(c *runtimeapi.PodSandboxConfig) {
			c.DnsConfig = &runtimeapi.DNSConfig{
				Servers: []string{"10.96.0.10", "fd00::10", "fe80::1%eth0"}, Searches: []string{"a.svc.cluster.local", "."}, Options: []string{"ndots:5"},
			}
		},
		"empty dns": func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig = &runtimeapi.DNSConfig{} },
		"ports": func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{
				{ContainerPort: 80, HostPort: 8080}, {ContainerPort: 80, HostPort: 8080, Protocol: runtimeapi.Protocol_UDP},
				{ContainerPort: 80, HostPort: 8080, HostIp: "127.0.0.1"}, {ContainerPort: 80}, {ContainerPort: 80}, {ContainerPort: 65535, HostPort: 65535, HostIp: "::1"},
			}
		},
		"host network": func(c *runtimeapi.PodSandboxConfig) {
			c.Hostname = ""
			c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: node, Pid: node, Ipc: node}
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 80}, {ContainerPort: 80, HostPort: 80}}
		},
		"userns with host network": func(c *runtimeapi.PodSandboxConfig) {
			c.Hostname = ""
			c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Network: node, UsernsOptions: userns()}
		},
		"userns NODE": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: node}
		},
		"long FQDN":   func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("a", 60) + ".b.c" },
		"systemd":     func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/kubepods.slice/kubepods-pod1.slice" },
		"cgroup root": func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/" },
		"much metadata": func(c *runtimeapi.PodSandboxConfig) {
			c.Annotations = map[string]string{"a": strings.Repeat("\x00\xff\n", 85<<10)}
		},
	} {
		c := kubelet().Pod
		change(c)
		if err := CheckPod(c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCheckPodRefuses(t *testing.T) {
	const node, container, target = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_TARGET
	long := strings.Repeat("x", 1<<20)
	type config = runtimeapi.PodSandboxConfig
	ns := func(o *runtimeapi.NamespaceOption) func(*config) {
		return func(c *config) { c.Hostname, c.Linux.SecurityContext.NamespaceOptions = "", o }
	}
	maps := func(uids, gids []*runtimeapi.IDMapping) func(*config) {
		return ns(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: uids, Gids: gids}})
	}
	one := userns().Uids
	port := func(p ...*runtimeapi.PortMapping) func(*config) { return func(c *config) { c.PortMappings = p } }
	dns := func(d *runtimeapi.DNSConfig) func(*config) { return func(c *config) { c.DnsConfig = d } }
	host := func(name string) func(*config) { return func(c *config) { c.Hostname = name } }
	parent := func(p string) func(*config) { return func(c *config) { c.Linux.CgroupParent = p } }
	sc := func(f func(*runtimeapi.LinuxSandboxSecurityContext)) func(*config) {
		return func(c *config) { f(c.Linux.SecurityContext) }
	}
	many := make([]*runtimeapi.IDMapping, 10000)
	for i := range many {
		many[i] = &runtimeapi.IDMapping{ContainerId: uint32(i), HostId: uint32(i), Length: 1}
	}
	for i, c := range []struct {
		change func(*config)
		field  string
	}{
		{func(c *config) { c.Metadata = nil }, "metadata.name"},
		{func(c *config) { c.Metadata.Name = "" }, "metadata.name"},
		{func(c *config) { c.Metadata.Namespace = "" }, "metadata.namespace"},
		{func(c *config) { c.Metadata.Uid = "" }, "metadata.uid"},
		{func(c *config) { c.Metadata.Uid = long }, "metadata.uid"},
		{func(c *config) { c.Metadata.Name = "a\nb" }, "metadata.name"},
		{func(c *config) { c.Labels = map[string]string{"": "x"} }, "labels"},
		{func(c *config) { c.Labels = map[string]string{"a": long} }, "labels"},
		{func(c *config) { c.Annotations = map[string]string{long: ""} }, "annotations"},
		{host("a b"), "hostname"}, {host("a\nb"), "hostname"}, {host("-a"), "hostname"}, {host("a-"), "hostname"}, {host("a..b"), "hostname"},
		{host("a_b"), "hostname"}, {host(strings.Repeat("a", 65)), "hostname"}, {host(long), "hostname"},
		{func(c *config) { c.Linux.SecurityContext.NamespaceOptions.Network = node }, "hostname"},
		{dns(&runtimeapi.DNSConfig{Servers: []string{"10.0.0.1\nnameserver 6.6.6.6"}}), "dns_config.servers[0]"},
		{dns(&runtimeapi.DNSConfig{Servers: []string{"10.0.0.1", "dns.example"}}), "dns_config.servers[1]"},
		{dns(&runtimeapi.DNSConfig{Searches: []string{"a b"}}), "dns_config.searches[0]"},
		{dns(&runtimeapi.DNSConfig{Searches: []string{""}}), "dns_config.searches[0]"},
		{dns(&runtimeapi.DNSConfig{Searches: []string{"a\x00"}}), "dns_config.searches[0]"},
		{dns(&runtimeapi.DNSConfig{Options: []string{"ndots:5\n"}}), "dns_config.options[0]"},
		{dns(&runtimeapi.DNSConfig{Options: make([]string, 5000)}), "dns_config.options"},
		{func(c *config) { c.LogDirectory = "logs" }, "log_directory"},
		{func(c *config) { c.LogDirectory = "/var/log/../../etc" }, "log_directory"},
		{func(c *config) { c.LogDirectory = "/var/log\x00" }, "log_directory"},
		{port(&runtimeapi.PortMapping{ContainerPort: 0, HostPort: 80}), "port_mappings[0].container_port"},
		{port(&runtimeapi.PortMapping{ContainerPort: 65536}), "port_mappings[0].container_port"},
		{port(&runtimeapi.PortMapping{ContainerPort: 80, HostPort: -1}), "port_mappings[0].host_port"},
		{port(&runtimeapi.PortMapping{ContainerPort: 80, HostPort: 65536}), "port_mappings[0].host_port"},
		{port(&runtimeapi.PortMapping{ContainerPort: 80, Protocol: 9}), "port_mappings[0].protocol"},
		{port(&runtimeapi.PortMapping{ContainerPort: 80, HostIp: "localhost"}), "port_mappings[0].host_ip"},
		{port(&runtimeapi.PortMapping{ContainerPort: 80, HostPort: 1}, &runtimeapi.PortMapping{ContainerPort: 81, HostPort: 1}), "port_mappings[1].host_port"},
		{ns(&runtimeapi.NamespaceOption{Network: container}), fieldNamespaces + ".network"},
		{ns(&runtimeapi.NamespaceOption{Network: target}), fieldNamespaces + ".network"},
		{ns(&runtimeapi.NamespaceOption{Ipc: container}), fieldNamespaces + ".ipc"},
		{ns(&runtimeapi.NamespaceOption{Pid: target, TargetId: "x"}), fieldNamespaces + ".pid"},
		{ns(&runtimeapi.NamespaceOption{Pid: 17}), fieldNamespaces + ".pid"},
		{ns(&runtimeapi.NamespaceOption{TargetId: "x"}), fieldNamespaces + ".target_id"},
		{ns(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: container}}), fieldNamespaces + ".userns_options.mode"},
		{ns(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: target}}), fieldNamespaces + ".userns_options.mode"},
		{ns(&runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: node, Uids: one}}), fieldNamespaces + ".userns_options"},
		{ns(&runtimeapi.NamespaceOption{Pid: node, UsernsOptions: userns()}), fieldNamespaces + ".userns_options"},
		{ns(&runtimeapi.NamespaceOption{Ipc: node, UsernsOptions: userns()}), fieldNamespaces + ".userns_options"},
		{maps(nil, nil), fieldNamespaces + ".userns_options.uids"},
		{maps(one, nil), fieldNamespaces + ".userns_options.gids"},
		{maps(many, one), fieldNamespaces + ".userns_options.uids"},
		{maps(one, []*runtimeapi.IDMapping{{HostId: 5, ContainerId: 1, Length: 1}}), fieldNamespaces + ".userns_options.gids"},
		{maps(one, []*runtimeapi.IDMapping{{HostId: 5}}), fieldNamespaces + ".userns_options.gids[0]"},
		{maps([]*runtimeapi.IDMapping{{HostId: 4294967000, Length: 65536}}, one), fieldNamespaces + ".userns_options.uids[0]"},
		{parent("../../x"), "linux.cgroup_parent"}, {parent("/a/../b"), "linux.cgroup_parent"}, {parent("/a//b"), "linux.cgroup_parent"},
		{parent("/a/./b"), "linux.cgroup_parent"}, {parent("a:b:c"), "linux.cgroup_parent"}, {parent("/a\n"), "linux.cgroup_parent"},
		{parent("/" + long), "linux.cgroup_parent"}, {parent("/" + strings.Repeat("a", 256)), "linux.cgroup_parent"},
		{sc(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.RunAsGroup = &runtimeapi.Int64Value{} }), "linux.security_context.run_as_group"},
		{sc(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: -1} }), "linux.security_context.run_as_user"},
		{sc(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.RunAsUser = &runtimeapi.Int64Value{Value: 1 << 32} }), "linux.security_context.run_as_user"},
		{sc(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.SupplementalGroups = []int64{1, -1} }), "linux.security_context.supplemental_groups[1]"},
		{sc(func(s *runtimeapi.LinuxSandboxSecurityContext) { s.SupplementalGroupsPolicy = 5 }), "linux.security_context.supplemental_groups_policy"},
		{sc(func(s *runtimeapi.LinuxSandboxSecurityContext) {
			s.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "s0\n"}
		}), fieldSELinux + ".level"},
		{sc(func(s *runtimeapi.LinuxSandboxSecurityContext) {
			s.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "a:b"}
		}), fieldSELinux + ".type"},
		{sc(func(s *runtimeapi.LinuxSandboxSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost}
		}), fieldSeccomp + ".localhost_ref"},
		{sc(func(s *runtimeapi.LinuxSandboxSecurityContext) {
			s.Apparmor = &runtimeapi.SecurityProfile{ProfileType: 9}
		}), fieldAppArmor + ".profile_type"},
		{func(c *config) { c.Linux.Sysctls = map[string]string{"kernel.core_pattern": "|/x"} }, "linux.sysctls"},
	} {
		t.Run(fmt.Sprintf("%d %.40s", i, c.field), func(t *testing.T) {
			cfg := kubelet().Pod
			c.change(cfg)
			expect(t, CheckPod(cfg), errdefs.ErrInvalidArgument, c.field)
		})
	}
	expect(t, CheckPod(nil), errdefs.ErrInvalidArgument, "config")
}

func TestCheckContainerRefuses(t *testing.T) {
	const node, container, target = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_CONTAINER, runtimeapi.NamespaceMode_TARGET
	long := strings.Repeat("x", 1<<20)
	type config = runtimeapi.ContainerConfig
	sc := func(f func(*runtimeapi.LinuxContainerSecurityContext)) func(*config) {
		return func(c *config) { f(c.Linux.SecurityContext) }
	}
	ns := func(o *runtimeapi.NamespaceOption) func(*config) {
		return func(c *config) { c.Linux.SecurityContext.NamespaceOptions = o }
	}
	log := func(p string) func(*config) { return func(c *config) { c.LogPath = p } }
	env := func(k, v string) func(*config) {
		return func(c *config) { c.Envs = []*runtimeapi.KeyValue{{Key: k, Value: []byte(v)}} }
	}
	mount := func(m ...*runtimeapi.Mount) func(*config) { return func(c *config) { c.Mounts = m } }
	at := func(p string) func(*config) { return mount(&runtimeapi.Mount{ContainerPath: p, HostPath: "/data"}) }
	from := func(p string) func(*config) { return mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: p}) }
	device := func(host, dest, perm string) func(*config) {
		return func(c *config) {
			c.Devices = []*runtimeapi.Device{{HostPath: host, ContainerPath: dest, Permissions: perm}}
		}
	}
	resources := func(r *runtimeapi.LinuxContainerResources) func(*config) {
		return func(c *config) { c.Linux.Resources = r }
	}
	image := &runtimeapi.ImageSpec{Image: "i"}
	many := make([]*runtimeapi.Mount, 10000)
	maps := make([]*runtimeapi.IDMapping, 10000)
	for i := range many {
		many[i] = &runtimeapi.Mount{ContainerPath: fmt.Sprint("/m", i), HostPath: "/data"}
		maps[i] = &runtimeapi.IDMapping{ContainerId: uint32(i), HostId: uint32(i), Length: 1}
	}
	for i, c := range []struct {
		change func(*config)
		field  string
	}{
		{func(c *config) { c.Metadata = nil }, "metadata.name"},
		{func(c *config) { c.Metadata.Name = long }, "metadata.name"},
		{func(c *config) { c.Image = nil }, "image.image"},
		{func(c *config) { c.Image.Image = long }, "image.image"},
		{func(c *config) { c.Labels = map[string]string{"a": long} }, "labels"},
		{log("../../x"), "log_path"}, {log("/x"), "log_path"}, {log("a/../b"), "log_path"}, {log("a\x00"), "log_path"}, {log("."), "log_path"},
		{log("a/"), "log_path"}, {log(long), "log_path"}, {log("a\nb"), "log_path"},
		{func(c *config) { c.Command = []string{"a", "\x00"} }, "command[1]"},
		{func(c *config) { c.Args = []string{"\x00"} }, "args[0]"},
		{func(c *config) { c.WorkingDir = "x" }, "working_dir"},
		{func(c *config) { c.WorkingDir = "/proc/self/fd/8" }, "working_dir"},
		{func(c *config) { c.WorkingDir = "/x/../proc/1" }, "working_dir"},
		{func(c *config) { c.WorkingDir = "/" + long }, "working_dir"},
		{env("", "x"), "envs[0].key"}, {env("a=b", "x"), "envs[0].key"}, {env("a\x00", "x"), "envs[0].key"}, {env("a", "x\x00"), "envs[0].value"},
		{env("a", "\xff"), "envs[0].value"},
		{sc(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }), "linux.security_context.privileged"},
		{sc(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsGroup = &runtimeapi.Int64Value{} }), "linux.security_context.run_as_group"},
		{sc(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsUsername = &runtimeapi.Int64Value{}, "x"
		}), "linux.security_context.run_as_username"},
		{sc(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "x\ny" }), "linux.security_context.run_as_username"},
		{sc(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser = &runtimeapi.Int64Value{Value: 1 << 31}
		}), "linux.security_context.run_as_user"},
		{sc(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities.AddCapabilities = []string{"CHOWN", "BOGUS"}
		}), fieldAddCaps + "[1]"},
		{sc(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities.DropCapabilities = []string{"CAP_CAP_CHOWN"}
		}), fieldDropCaps + "[0]"},
		{sc(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Capabilities.AddAmbientCapabilities = []string{""}
		}), fieldAmbientCaps + "[0]"},
		{sc(func(s *runtimeapi.LinuxContainerSecurityContext) { s.MaskedPaths = []string{"proc"} }), "linux.security_context.masked_paths[0]"},
		{sc(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyPaths = []string{"/"} }), "linux.security_context.readonly_paths[0]"},
		{sc(func(s *runtimeapi.LinuxContainerSecurityContext) { s.MaskedPaths = make([]string, 5000) }), "linux.security_context.masked_paths"},
		{sc(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.SelinuxOptions = &runtimeapi.SELinuxOption{User: "a\nb"}
		}), fieldSELinux + ".user"},
		{ns(&runtimeapi.NamespaceOption{Network: node, Pid: container}), fieldNamespaces + ".network"},
		{ns(&runtimeapi.NamespaceOption{Network: container}), fieldNamespaces + ".network"},
		{ns(&runtimeapi.NamespaceOption{Ipc: node}), fieldNamespaces + ".ipc"},
		{ns(&runtimeapi.NamespaceOption{Pid: node}), fieldNamespaces + ".pid"},
		{ns(&runtimeapi.NamespaceOption{Pid: 9}), fieldNamespaces + ".pid"},
		{ns(&runtimeapi.NamespaceOption{Pid: target}), fieldNamespaces + ".target_id"},
		{ns(&runtimeapi.NamespaceOption{Pid: container, TargetId: "x"}), fieldNamespaces + ".target_id"},
		{ns(&runtimeapi.NamespaceOption{UsernsOptions: userns()}), fieldNamespaces + ".userns_options"},
		{at("/"), "mounts[0].container_path"}, {at("x"), "mounts[0].container_path"}, {at(""), "mounts[0].container_path"},
		{at("/x/../../etc"), "mounts[0].container_path"}, {at("/proc"), "mounts[0].container_path"}, {at("//proc/./sys"), "mounts[0].container_path"},
		{at("/proc/self/attr"), "mounts[0].container_path"}, {at("/x\x00"), "mounts[0].container_path"}, {at("/" + long), "mounts[0].container_path"},
		{from(""), "mounts[0].host_path"}, {from("x"), "mounts[0].host_path"}, {from("/a/../b"), "mounts[0].host_path"}, {from("/a\x00"), "mounts[0].host_path"},
		{mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/data"}, &runtimeapi.Mount{ContainerPath: "/x/", HostPath: "/data"}), "mounts[1].container_path"},
		{mount(many...), "mounts"},
		{mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/data", Image: image}), "mounts[0].host_path"},
		{mount(&runtimeapi.Mount{ContainerPath: "/x", Image: image, ImageSubPath: "../x"}), "mounts[0].image_sub_path"},
		{mount(&runtimeapi.Mount{ContainerPath: "/x", Image: image, ImageSubPath: "/x"}), "mounts[0].image_sub_path"},
		{mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/data", ImageSubPath: "x"}), "mounts[0].image_sub_path"},
		{mount(&runtimeapi.Mount{ContainerPath: "/x", Image: image, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}), "mounts[0].propagation"},
		{mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/data", Propagation: 7}), "mounts[0].propagation"},
		{mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/data", RecursiveReadOnly: true}), "mounts[0].recursive_read_only"},
		{mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/data", RecursiveReadOnly: true, Readonly: true, Propagation: 1}), "mounts[0].recursive_read_only"},
		{mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/data", MountOptions: []string{"nodev", "suid"}}), "mounts[0].mount_options[1]"},
		{mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/data", UidMappings: maps[:1]}), "mounts[0]"},
		{mount(&runtimeapi.Mount{ContainerPath: "/x", HostPath: "/data", UidMappings: maps, GidMappings: maps}), "mounts[0].uidMappings"},
		{device("x", "/dev/x", "r"), "devices[0].host_path"}, {device("/dev/x", "", "r"), "devices[0].container_path"},
		{device("/dev/x", "/dev/x", "rwmx"), "devices[0].permissions"}, {device("/dev/x", "/dev/x", ""), "devices[0].permissions"},
		{device("/dev/x", "/proc/x", "r"), "devices[0].container_path"}, {device("/dev/x", "/", "r"), "devices[0].container_path"},
		{resources(&runtimeapi.LinuxContainerResources{OomScoreAdj: -1001}), "linux.resources.oom_score_adj"},
		{func(c *config) { c.StopSignal = 66 }, "stop_signal"},
		{func(c *config) {
			c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/gpu=0"}, {Name: "gpu0"}}
		}, "CDI_devices[1].name"},
		{func(c *config) { c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.example/gpu=0\n"}} }, "CDI_devices[0].name"},
		{func(c *config) { c.CDIDevices = make([]*runtimeapi.CDIDevice, 10000) }, "CDI_devices"},
		{func(c *config) { c.Annotations = map[string]string{"cdi.k8s.io/a": "vendor.example/gpu=0,"} }, "annotations: \"cdi.k8s.io/a\""},
	} {
		t.Run(fmt.Sprintf("%d %.40s", i, c.field), func(t *testing.T) {
			in := kubelet()
			c.change(in.Container)
			expect(t, CheckContainer(in.Pod, in.Container), errdefs.ErrInvalidArgument, c.field)
		})
	}
	in := kubelet()
	expect(t, CheckContainer(in.Pod, nil), errdefs.ErrInvalidArgument, "config")
}

// The value of a variable may be a secret.
func TestErrorsShowNoValues(t *testing.T) {
	for _, value := range []string{"hunter2\x00", "hunter2\xff", "hunter2" + strings.Repeat("x", maxString)} {
		in := kubelet()
		in.Container.Envs = []*runtimeapi.KeyValue{{Key: "PASSWORD", Value: []byte(value)}}
		if _, err := Build(in); err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "PASSWORD") {
			t.Errorf("error %v", err)
		}
	}
}

// A container in a pod with a user namespace may leave the options out, but not ask for others.
func TestUsernsOfContainer(t *testing.T) {
	in := kubelet()
	in.podContext().NamespaceOptions = &runtimeapi.NamespaceOption{UsernsOptions: userns()}
	in.context().NamespaceOptions = nil
	if err := CheckContainer(in.Pod, in.Container); err != nil {
		t.Errorf("without options: %v", err)
	}
	in.context().NamespaceOptions = &runtimeapi.NamespaceOption{UsernsOptions: userns()}
	if err := CheckContainer(in.Pod, in.Container); err != nil {
		t.Errorf("with the pod's: %v", err)
	}
	in.context().NamespaceOptions.UsernsOptions = nil
	expect(t, CheckContainer(in.Pod, in.Container), errdefs.ErrInvalidArgument, fieldNamespaces+".userns_options")
	other := userns()
	other.Uids[0].HostId++
	in.context().NamespaceOptions.UsernsOptions = other
	expect(t, CheckContainer(in.Pod, in.Container), errdefs.ErrInvalidArgument, fieldNamespaces+".userns_options")
}

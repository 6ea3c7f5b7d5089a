package spec

import (
	"encoding/json"
	"path"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Whatever the request is, it is translated or refused with an error of fair length; what is translated stays in bounds.
func FuzzBuild(f *testing.F) {
	in := kubelet()
	in.Container.Devices = []*runtimeapi.Device{{HostPath: "/dev/fuse", ContainerPath: "/dev/fuse", Permissions: "rwm"}}
	in.both(&runtimeapi.NamespaceOption{UsernsOptions: userns()})
	in.Pod.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	in.context().Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"CHOWN"}}
	pod, err := proto.Marshal(in.Pod)
	if err != nil {
		f.Fatal(err)
	}
	container, err := proto.Marshal(in.Container)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pod, container)
	f.Fuzz(func(t *testing.T, pod, container []byte) {
		in := kubelet()
		in.Pod, in.Container = &runtimeapi.PodSandboxConfig{}, &runtimeapi.ContainerConfig{}
		if proto.Unmarshal(pod, in.Pod) != nil || proto.Unmarshal(container, in.Container) != nil {
			return
		}
		fair := func(err error) bool {
			if err == nil {
				return true
			}
			if len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\n\x00") || !(errdefs.IsInvalidArgument(err) || errdefs.IsNotImplemented(err)) {
				t.Errorf("error %q", err)
			}
			return false
		}
		if !fair(CheckPod(in.Pod)) {
			return
		}
		if _, err := PodSysctls(in.Pod, Defaults{UnprivilegedPorts: true}); err != nil {
			t.Errorf("CheckPod accepted what PodSysctls refuses: %v", err)
		}
		s, err := Build(in)
		if !fair(err) {
			return
		}
		if _, err := json.Marshal(s); err != nil {
			t.Error(err)
		}
		for _, m := range s.Mounts {
			if !path.IsAbs(m.Destination) || path.Clean(m.Destination) != m.Destination || m.Destination == "/" {
				t.Errorf("mount on %q", m.Destination)
			}
		}
		if p := s.Linux.CgroupsPath; path.Clean(p) != p || !path.IsAbs(p) || !strings.HasSuffix(p, "/criserver-"+in.ID) {
			t.Errorf("cgroup %q", p)
		}
		if !in.Container.GetLinux().GetSecurityContext().GetPrivileged() && s.Linux.Resources.Devices[0].Allow {
			t.Error("all devices are allowed")
		}
	})
}

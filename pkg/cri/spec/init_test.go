package spec

import (
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What a pod's security context says of its init, and what of it cannot be.
// rows: SS-03, SS-05, SS-07, SS-09
func TestBuildInit(t *testing.T) {
	in := kubelet()
	id64 := func(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }
	build := func(sc *runtimeapi.LinuxSandboxSecurityContext) (Init, error) {
		t.Helper()
		cfg := &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: sc}}
		return BuildInit(cfg, in.Host, in.Defaults)
	}
	got, err := build(nil)
	if err != nil || !reflect.DeepEqual(got, Init{}) {
		t.Errorf("nothing is asked for: %+v, %v", got, err)
	}
	users := &runtimeapi.NamespaceOption{UsernsOptions: userns()}
	for _, options := range []*runtimeapi.NamespaceOption{nil, users} {
		got, err = build(&runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: options, RunAsUser: id64(1000), RunAsGroup: id64(2000), SupplementalGroups: []int64{3000, 4000},
			Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
		})
		if err != nil || *got.UID != 1000 || *got.GID != 2000 || !reflect.DeepEqual(got.Groups, []uint32{3000, 4000}) || got.Seccomp == nil {
			t.Errorf("%+v, %v", got, err)
		}
	}
	got, err = build(&runtimeapi.LinuxSandboxSecurityContext{SeccompProfilePath: "localhost//seccomp/ok.json"})
	if err != nil || len(got.Seccomp.Syscalls) != 1 {
		t.Errorf("the node's profile: %+v, %v", got.Seccomp, err)
	}
	for field, sc := range map[string]*runtimeapi.LinuxSandboxSecurityContext{
		"run_as_user":            {NamespaceOptions: users, RunAsUser: id64(1 << 30)},
		"run_as_group":           {NamespaceOptions: users, RunAsUser: id64(1), RunAsGroup: id64(1 << 30)},
		"supplemental_groups[1]": {NamespaceOptions: users, SupplementalGroups: []int64{1, 1 << 30}},
		"seccomp.localhost_ref": {Seccomp: &runtimeapi.SecurityProfile{
			ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/seccomp/none.json"}},
	} {
		if _, err := build(sc); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "linux.security_context."+field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

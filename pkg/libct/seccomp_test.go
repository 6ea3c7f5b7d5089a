package libct

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestSeccomp(t *testing.T) {
	n := newNode(t)
	errno := uint(95)
	profile := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{{
			Names: []string{"sethostname"}, Action: specs.ActErrno, ErrnoRet: &errno,
		}},
	}
	spec := n.spec("c", "sleep", "1000")
	spec.Linux.Seccomp = profile
	n.create(spec, "c")
	n.must(n.Start(t.Context(), "c"))
	for _, pid := range []string{"1", "self"} {
		if out, _ := n.execOut("c", "grep", "Seccomp:", "/proc/"+pid+"/status"); out != "Seccomp:\t2\n" {
			t.Errorf("/proc/%s/status: %q", pid, out)
		}
	}
	if out, _ := n.execOut("c", "hostname", "x"); !strings.Contains(out, "not supported") {
		t.Errorf("sethostname: %q", out)
	}
	back, err := n.Spec("c")
	n.must(err)
	if got := back.Linux.Seccomp; len(got.Syscalls) != 1 || got.Syscalls[0].Names[0] != "sethostname" {
		t.Errorf("the profile came back as %+v", got)
	}
	bad := n.spec("d", "true")
	bad.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_NONSENSE"}
	n.rootfs("d")
	if _, err := n.Create(t.Context(), "d", CreateOptions{Spec: bad}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("create with a bad profile: %v", err)
	}
	n.must(n.Delete(t.Context(), "d", ""))
}

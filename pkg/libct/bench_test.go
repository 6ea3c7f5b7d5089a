package libct

import (
	"fmt"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The way of a container from nothing to its executed command, with the default
// seccomp profile; the way back is not timed.
func BenchmarkRun(b *testing.B) {
	n := newNode(b)
	for i := range b.N {
		id := fmt.Sprint("c", i)
		spec := n.spec(id, "sleep", "1000")
		spec.Linux.Seccomp = defaultSeccomp(b, spec)
		b.StartTimer()
		n.create(spec, id)
		n.must(n.Start(b.Context(), id))
		b.StopTimer()
		n.must(n.Delete(b.Context(), id))
	}
}

// An exec until its exit is known.
func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	spec := n.spec("c", "sleep", "1000")
	spec.Linux.Seccomp = defaultSeccomp(b, spec)
	n.create(spec, "c")
	n.must(n.Start(b.Context(), "c"))
	for b.Loop() {
		p, err := n.Exec(b.Context(), "c", execProcess("true"), Stdio{})
		n.must(err)
		_, err = p.Wait(b.Context())
		n.must(err)
		n.must(p.Close())
	}
}

func BenchmarkDelete(b *testing.B) {
	n := newNode(b)
	for i := range b.N {
		id := fmt.Sprint("c", i)
		b.StopTimer()
		n.run(id, "sleep", "1000")
		b.StartTimer()
		n.must(n.Signal(b.Context(), id, unix.SIGKILL, false))
		n.must(n.Delete(b.Context(), id))
	}
}

func defaultSeccomp(b *testing.B, spec *specs.Spec) *specs.LinuxSeccomp {
	b.Helper()
	profile, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		b.Fatal(err)
	}
	return profile
}

package libct

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The way of a container from nothing to its executed command, with the default
// seccomp profile; the way back is not timed.
func BenchmarkRun(b *testing.B) {
	n := newNode(b)
	before := n.cpu()
	defer func() { b.ReportMetric((n.cpu()-before)/float64(b.N), "cpu-ms/op") }()
	for i := range b.N {
		id := fmt.Sprint("c", i)
		spec := n.spec(id, "sleep", "1000")
		spec.Linux.Seccomp = defaultSeccomp(b, spec)
		b.StartTimer()
		n.create(spec, id)
		n.must(n.Start(b.Context(), id))
		b.StopTimer()
		n.must(n.Delete(b.Context(), id, ""))
	}
}

// An exec until its exit is known, both ways by turns, so that the machine is the same to both.
func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	spec := n.spec("c", "sleep", "1000")
	spec.Linux.Seccomp = defaultSeccomp(b, spec)
	n.create(spec, "c")
	n.must(n.Start(b.Context(), "c"))
	quick := execProcess("true")
	slow := byLibcontainer(quick)
	for _, together := range []int{1, 10} {
		var rounds [2]execCost
		b.Run(fmt.Sprintf("%dAtOnce", together), func(b *testing.B) {
			rounds = [2]execCost{}
			for b.Loop() {
				for way, p := range []*specs.Process{quick, slow} {
					n.timeExecs(&rounds[way], together, p)
				}
			}
			for way, name := range []string{"init", "libcontainer"} {
				rounds[way].report(b, name)
			}
		})
	}
}

// execCost is what execs took.
type execCost struct {
	walls []time.Duration
	cpu   float64 // milliseconds, of all
}

// timeExecs makes so many execs at once.
func (n *node) timeExecs(cost *execCost, together int, spec *specs.Process) {
	before := n.cpu()
	walls := make([]time.Duration, together)
	var g errgroup.Group
	for i := range together {
		g.Go(func() error {
			start := time.Now()
			p, err := n.Exec(n.t.Context(), "c", spec, Stdio{})
			if err != nil {
				return err
			}
			_, err = p.Wait(n.t.Context())
			walls[i] = time.Since(start)
			return errors.Join(err, p.Close())
		})
	}
	n.must(g.Wait())
	cost.walls = append(cost.walls, walls...)
	cost.cpu += n.cpu() - before
}

func (c *execCost) report(b *testing.B, name string) {
	slices.Sort(c.walls)
	for _, percent := range []int{50, 90} {
		wall := c.walls[(len(c.walls)-1)*percent/100]
		b.ReportMetric(float64(wall.Microseconds())/1000, fmt.Sprintf("%s-p%d-ms", name, percent))
	}
	b.ReportMetric(c.cpu/float64(len(c.walls)), name+"-cpu-ms")
}

// cpu returns the CPU time in milliseconds that the shim and all that it has
// reaped have used. On a machine that is busy it says more than the clock.
func (n *node) cpu() float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.shimPid()))
	n.must(err)
	_, after, _ := bytes.Cut(b, []byte(") "))
	fields, ticks := bytes.Fields(after), 0
	for _, f := range fields[11:15] {
		t, err := strconv.Atoi(string(f))
		n.must(err)
		ticks += t
	}
	return float64(ticks) * 10
}

func BenchmarkDelete(b *testing.B) {
	n := newNode(b)
	for i := range b.N {
		id := fmt.Sprint("c", i)
		b.StopTimer()
		n.run(id, "sleep", "1000")
		b.StartTimer()
		n.must(n.Signal(b.Context(), id, unix.SIGKILL, false))
		n.must(n.Delete(b.Context(), id, ""))
	}
}

func defaultSeccomp(b testing.TB, spec *specs.Spec) *specs.LinuxSeccomp {
	b.Helper()
	profile, err := seccomp.GetDefaultProfile(spec)
	if err != nil {
		b.Fatal(err)
	}
	return profile
}

// The same on a node where not much happens, as it is with pods: the kernel's
// grace periods, of which joining a cgroup waits for one, are not under way.
func BenchmarkRunIdle(b *testing.B) {
	n := newNode(b)
	for i := range b.N {
		id := fmt.Sprint("c", i)
		spec := n.spec(id, "sleep", "1000")
		spec.Linux.Seccomp = defaultSeccomp(b, spec)
		b.StopTimer()
		time.Sleep(150 * time.Millisecond)
		b.StartTimer()
		n.create(spec, id)
		n.must(n.Start(b.Context(), id))
		b.StopTimer()
		n.must(n.Delete(b.Context(), id, ""))
	}
}

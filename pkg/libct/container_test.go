package libct

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/wire"
)

func TestRun(t *testing.T) {
	n := newNode(t)
	n.create(n.spec("c", "sh", "-c", "echo out; echo err >&2; exit 7"), "c")
	if _, err := os.Stat(filepath.Join(n.state, "containers/c/exit.json")); err == nil {
		t.Fatal("it ended before it was started")
	}
	before := time.Now()
	n.must(n.Start(t.Context(), "c"))
	e := n.exit("c")
	if e.Code != 7 || e.Signal != 0 || e.OOMKilled || e.Unknown || e.At.Before(before) {
		t.Errorf("exit %+v, want code 7", e)
	}
	b, err := os.ReadFile(n.logPath("c"))
	n.must(err)
	if !strings.Contains(string(b), " stdout F out\n") || !strings.Contains(string(b), " stderr F err\n") {
		t.Errorf("log %q", b)
	}
	if err := n.Start(t.Context(), "c"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start of an ended container: %v", err)
	}
	if err := n.ReopenLog(t.Context(), "c"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reopen the log of an ended container: %v", err)
	}
	n.must(n.Delete(t.Context(), "c", ""))
	n.must(n.Delete(t.Context(), "c", ""))
}

// rows: T-18
func TestExitCodes(t *testing.T) {
	n := newNode(t)
	for _, tc := range []struct {
		name   string
		args   []string
		signal unix.Signal // to send
		want   wire.Exit
	}{
		{"ok", []string{"true"}, 0, wire.Exit{Code: 0}},
		{"fail", []string{"false"}, 0, wire.Exit{Code: 1}},
		{"255", []string{"sh", "-c", "exit 255"}, 0, wire.Exit{Code: 255}},
		{"suicide", []string{"sh", "-c", "sh -c 'kill -9 $$'; exit $?"}, 0, wire.Exit{Code: 137}},
		{"killed", []string{"sleep", "1000"}, unix.SIGKILL, wire.Exit{Code: 137, Signal: 9}},
		{"trapped", []string{"sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.01; done"}, unix.SIGTERM, wire.Exit{Code: 3}},
	} {
		n.sub(t, tc.name, func(t *testing.T) {
			n.run(tc.name, tc.args...)
			if tc.signal != 0 {
				if tc.name == "trapped" { // only once it has set its trap
					n.until("sleep in container", func() bool {
						out, _ := n.execOut(tc.name, "ps")
						return strings.Contains(out, "sleep 0.01")
					})
				}
				n.must(n.Signal(t.Context(), tc.name, tc.signal, false))
			}
			e := n.exit(tc.name)
			e.At = time.Time{}
			if e != tc.want {
				t.Errorf("exit %+v, want %+v", e, tc.want)
			}
		})
	}
}

func TestStartErrors(t *testing.T) {
	n := newNode(t)
	for i, tc := range []struct{ command, reason string }{
		{"nope", `exec: "nope": executable file not found in $PATH`},
		{"/bin/nope", `exec: "/bin/nope": stat /bin/nope: no such file or directory`},
		{"/bin/noexec", `exec: "/bin/noexec": permission denied`},
		{"/bin", `exec: "/bin": is a directory`},
		{"/bin/garbage", `exec /bin/garbage: exec format error`},
		{"/bin/nointerp", `exec /bin/nointerp: no such file or directory`},
	} {
		for _, tty := range []bool{false, true} {
			n.sub(t, fmt.Sprint(tc.command, tty), func(t *testing.T) {
				id := fmt.Sprintf("c%d%t", i, tty)
				spec := n.spec(id, tc.command)
				spec.Process.Terminal = tty
				n.create(spec, id)
				err := n.Start(t.Context(), id)
				var start *StartError
				if !errors.As(err, &start) || start.Reason != tc.reason {
					t.Errorf("start: %v, want a start error %q", err, tc.reason)
				}
				e := n.exit(id)
				if e.Code != 128 || e.StartErr != tc.reason || e.Signal != 0 {
					t.Errorf("exit %+v", e)
				}
			})
		}
	}
}

func TestCreateFails(t *testing.T) {
	n := newNode(t)
	n.rootfs("c")
	spec := n.spec("c", "true")
	spec.Mounts[1].Type = "nosuchfs"
	_, err := n.Create(t.Context(), "c", CreateOptions{Spec: spec, LogPath: n.logPath("c")})
	if err == nil || !strings.Contains(err.Error(), "no such device") {
		t.Fatalf("create: %v", err)
	}
	for _, path := range []string{"containers/c", "libcontainer/c"} {
		if _, err := os.Stat(filepath.Join(n.state, path)); err == nil {
			t.Errorf("%s is left", path)
		}
	}
	n.checkCgroups()
	if _, err := n.Create(t.Context(), "c", CreateOptions{Spec: n.spec("c", "true"), LogPath: n.layers}); err == nil || !strings.Contains(err.Error(), n.layers) {
		t.Errorf("create with a directory as log: %v", err)
	}
	if _, err := n.Create(t.Context(), "../c", CreateOptions{Spec: n.spec("c", "true")}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("create ../c: %v", err)
	}
	n.must(n.Delete(t.Context(), "c", ""))
}

// rows: D-30
func TestOOM(t *testing.T) {
	n := newNode(t)
	limit := int64(64 << 20)
	spec := n.spec("c", "sh", "-c", "dd if=/dev/zero of=/dev/null bs=256M")
	spec.Linux.Resources.Memory = memory(limit)
	n.create(spec, "c")
	n.must(n.Start(t.Context(), "c"))
	if e := n.exit("c"); !e.OOMKilled || e.Code != 137 {
		t.Errorf("exit %+v, want OOM killed with 137", e)
	}
}

func TestUpdate(t *testing.T) {
	n := newNode(t)
	spec := n.spec("c", "sleep", "1000")
	spec.Linux.Resources.Memory = memory(32 << 20)
	n.create(spec, "c")
	n.must(n.Start(t.Context(), "c"))
	limit := filepath.Join("/sys/fs/cgroup/memory", n.cgroup, "c/memory.limit_in_bytes")
	shares := filepath.Join("/sys/fs/cgroup/cpu", n.cgroup, "c/cpu.shares")
	want := func(path, value string) {
		t.Helper()
		b, err := os.ReadFile(path)
		n.must(err)
		if got := strings.TrimSpace(string(b)); got != value {
			t.Errorf("%s is %s, want %s", path, got, value)
		}
	}
	n.must(n.Update(t.Context(), "c", resources(64<<20, 0)))
	want(limit, "67108864")
	n.must(n.Update(t.Context(), "c", resources(0, 300)))
	want(limit, "67108864") // the second update keeps what the first did
	want(shares, "300")
	bad := resources(96<<20, 400)
	bad.CPU.Cpus = "4000"
	if err := n.Update(t.Context(), "c", bad); err == nil {
		t.Error("an impossible cpuset was taken")
	}
	want(limit, "67108864") // all or nothing
	want(shares, "300")
	if out, e := n.execOut("c", "echo", "hi"); out != "hi\n" || e.Code != 0 {
		t.Errorf("exec after update: %q %+v", out, e)
	}
	back, err := n.Spec("c")
	n.must(err)
	if back.Process.Args[0] != "sleep" {
		t.Errorf("spec %+v", back.Process)
	}
}

// A failed update also takes back what was never set before.
// rows: R-15
func TestUpdateRollsBack(t *testing.T) {
	n := newNode(t)
	n.run("c", "sleep", "1000")
	read := func() (all string) {
		for _, f := range []string{"memory/%s/memory.limit_in_bytes", "memory/%s/memory.memsw.limit_in_bytes", "cpu/%s/cpu.shares",
			"cpu/%s/cpu.cfs_quota_us", "cpu/%s/cpu.cfs_period_us", "cpuset/%s/cpuset.cpus"} {
			b, _ := os.ReadFile(filepath.Join("/sys/fs/cgroup", fmt.Sprintf(f, n.cgroup+"/c")))
			all += string(b)
		}
		return all
	}
	before := read()
	bad := resources(96<<20, 400)
	quota, period, swap := int64(20000), uint64(50000), int64(128<<20)
	bad.Memory.Swap, bad.CPU.Quota, bad.CPU.Period, bad.CPU.Cpus = &swap, &quota, &period, "0"
	bad.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "3MB", Limit: 1}}
	if err := n.Update(t.Context(), "c", bad); err == nil {
		t.Fatal("an impossible page size was taken")
	}
	if after := read(); after != before {
		t.Errorf("limits %q, before the failed update %q", after, before)
	}
	bad.HugepageLimits, bad.CPU.Cpus = nil, "4000"
	if err := n.Update(t.Context(), "c", bad); err == nil {
		t.Fatal("an impossible cpuset was taken")
	}
	if after := read(); after != before {
		t.Errorf("limits %q, before the failed update %q", after, before)
	}
	bad.CPU.Cpus = "0"
	n.must(n.Update(t.Context(), "c", bad))
	if after := read(); after != "100663296\n134217728\n400\n20000\n50000\n0\n" {
		t.Errorf("limits after a good update %q", after)
	}
}

func TestPause(t *testing.T) {
	n := newNode(t)
	n.run("c", "sh", "-c", "while :; do echo x; sleep 0.01; done")
	n.until("output", func() bool { return n.logged("c") != "" })
	n.must(n.Pause(t.Context(), "c"))
	list, err := n.List(t.Context())
	n.must(err)
	if len(list) != 1 || !list[0].Paused || !list[0].Started {
		t.Errorf("list %+v", list)
	}
	if _, err := n.Exec(t.Context(), "c", execProcess("true"), Stdio{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec in a paused container: %v", err)
	}
	n.must(n.Resume(t.Context(), "c"))
	n.must(n.Pause(t.Context(), "c"))
	n.must(n.Signal(t.Context(), "c", unix.SIGKILL, false)) // reaches it all the same
	if e := n.exit("c"); e.Code != 137 {
		t.Errorf("exit %+v", e)
	}
	if err := n.Pause(t.Context(), "c"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("pause of an ended container: %v", err)
	}
}

// The container of a pod that shares its PID namespace, or the host's, may leave
// processes behind.
// rows: N-05, D-107, GAP-19, P-052
func TestHostPidLeavesNothing(t *testing.T) {
	n := newNode(t)
	spec := n.spec("c", "sh", "-c", "setsid sleep 1234567 & echo started; exit 5")
	spec.Linux.Namespaces = spec.Linux.Namespaces[1:] // no PID namespace of its own
	n.create(spec, "c")
	n.must(n.Start(t.Context(), "c"))
	if e := n.exit("c"); e.Code != 5 {
		t.Errorf("exit %+v", e)
	}
	n.until("left process is gone", func() bool {
		b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/pids", n.cgroup, "c/cgroup.procs"))
		return err == nil && len(b) == 0
	})
}

func TestDeleteKills(t *testing.T) {
	n := newNode(t)
	pid := n.run("c", "sleep", "1000")
	n.must(n.Delete(t.Context(), "c", ""))
	if alive(pid) {
		t.Error("its process lives")
	}
	if _, err := n.Spec("c"); !errdefs.IsNotFound(err) {
		t.Errorf("spec: %v", err)
	}
}

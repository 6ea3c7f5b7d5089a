package blackbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

// restart ends the daemon in some way and starts it again.
func restart(t *testing.T, on *node.Node, end func(*node.Node) error) {
	t.Helper()
	if err := end(on); err != nil {
		t.Fatal(err)
	}
	if err := on.Boot(); err != nil {
		t.Fatal(err)
	}
}

// writer is a container that writes "line 1", "line 2", ... until it is told to end, then says how many it wrote and ends
// with 42. It is told by SIGTERM or by the file /ctl/NAME.
type writer struct {
	*container
	ctl string // the file that ends it
}

const writerScript = `
trap 'end' TERM
end() { echo $i > /ctl/$NAME.count; echo done; exit 42; }
i=0
while :; do
  for _ in 1 2 3 4 5 6 7 8 9 10; do i=$((i+1)); echo "line $i"; done
  [ -e /ctl/$NAME ] && end
  sleep 0.05
done`

// writers starts that many pods with a writer in each.
func writers(t *testing.T, on *node.Node, count int) []writer {
	t.Helper()
	ctl := t.TempDir()
	var all []writer
	for i := range count {
		p := podOn(t, on)
		name := fmt.Sprintf("w%d", i)
		c := p.start(sh(writerScript), mounts(&runtimeapi.Mount{ContainerPath: "/ctl", HostPath: ctl}), func(c *runtimeapi.ContainerConfig) {
			c.Envs = []*runtimeapi.KeyValue{{Key: "NAME", Value: []byte(name)}}
		})
		all = append(all, writer{container: c, ctl: filepath.Join(ctl, name)})
	}
	for _, w := range all {
		w.hasLogged("line 10\n")
	}
	return all
}

// tellToEnd makes a writer end by itself.
func (w writer) tellToEnd() {
	w.t.Helper()
	if err := os.WriteFile(w.ctl, nil, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

// wrote is how many lines the writer said it wrote, 0 if it has not ended.
func (w writer) wrote() int {
	b, err := os.ReadFile(w.ctl + ".count")
	if err != nil {
		return 0
	}
	k, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return k
}

// pid is the process that writes, as the node sees it.
func (w writer) pid() int {
	w.t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range procs {
		b, _ := os.ReadFile(f)
		pid := filepath.Base(filepath.Dir(f))
		if strings.Contains("\x00"+string(b), "\x00NAME="+filepath.Base(w.ctl)+"\x00") && inNamespaceAs1(pid) {
			k, _ := strconv.Atoi(pid)
			return k
		}
	}
	return 0
}

// inNamespaceAs1 tells a container's first process from its children.
func inNamespaceAs1(pid string) bool {
	b, _ := os.ReadFile("/proc/" + pid + "/status")
	return strings.Contains(string(b), "NSpid:\t") && strings.HasSuffix(strings.TrimSpace(after(string(b), "NSpid:\t")), "\t1")
}

func after(s, mark string) string {
	_, rest, _ := strings.Cut(s, mark)
	line, _, _ := strings.Cut(rest, "\n")
	return line
}

// gaps counts lines that are missing from a writer's log. A line twice, or out of order, fails the test.
func (w writer) gaps() (holes, missing int) {
	w.t.Helper()
	last := 0
	for _, l := range strings.Split(strings.TrimSuffix(w.stdout(), "\n"), "\n") {
		if l == "done" {
			continue
		}
		k, err := strconv.Atoi(strings.TrimPrefix(l, "line "))
		if err != nil || k <= last {
			w.t.Errorf("after line %d comes %q", last, l)
			return holes, missing
		}
		if k > last+1 {
			holes, missing = holes+1, missing+k-last-1
		}
		last = k
	}
	if last < w.wrote() {
		holes, missing = holes+1, missing+w.wrote()-last
	}
	return holes, missing
}

// rows: D-12, D-160, D-161, D-162, D-167, GAP-16
func TestDaemonIsKilledUnderLoad(t *testing.T) {
	ours(t)
	leavesNothing(t)
	const pods, endWhileDown = 20, 5
	all := writers(t, n, pods)
	pids, started := make([]int, pods), make([]int64, pods)
	for i, w := range all {
		pids[i], started[i] = w.pid(), w.status().StartedAt
	}

	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	for _, w := range all[:endWhileDown] {
		w.tellToEnd()
	}
	for _, w := range all[:endWhileDown] {
		eventually(t, 10*time.Second, "a container ends while the daemon is down", func() (bool, string) { return w.wrote() > 0, w.rawLog() })
	}
	for i, w := range all[endWhileDown:] {
		size := len(w.rawLog())
		eventually(t, 10*time.Second, "logs go on while the daemon is down", func() (bool, string) { return len(w.rawLog()) > size, w.rawLog() })
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pids[endWhileDown+i])); err != nil {
			t.Errorf("a container died with the daemon: %v", err)
		}
	}
	if err := n.Boot(); err != nil {
		t.Fatal(err)
	}
	back := time.Now()

	for _, w := range all[:endWhileDown] {
		s := w.endsWith(42, "Error")
		if at := time.Unix(0, s.FinishedAt); at.Before(killed.Add(-time.Second)) || at.After(back) {
			t.Errorf("it finished at %v; the daemon was down from %v to %v", at, killed, back)
		}
	}
	for i, w := range all[endWhileDown:] {
		s := w.status()
		equal(t, "state", s.State, runtimeapi.ContainerState_CONTAINER_RUNNING)
		equal(t, "start time", s.StartedAt, started[endWhileDown+i])
		equal(t, "process", w.pid(), pids[endWhileDown+i])
		equal(t, "exec", w.sh("echo in"), "in")
		equal(t, "pod state", w.pod.status().State, runtimeapi.PodSandboxState_SANDBOX_READY)
	}
	for _, w := range all[endWhileDown:] {
		w.stop(10)
		w.endsWith(42, "Error")
	}
	for i, w := range all {
		if holes, missing := w.gaps(); missing > 0 {
			t.Errorf("writer %d: %d lines of %d are missing in %d places", i, missing, w.wrote(), holes)
		}
	}
}

// Killing the shim costs at most the piece that it had in hand, of each log; no container, and no exit code.
func TestShimIsKilledUnderLoad(t *testing.T) {
	ours(t)
	leavesNothing(t)
	const pods, endAtOnce = 20, 5
	all := writers(t, n, pods)
	old := n.ShimPid()
	for _, w := range all[:endAtOnce] {
		w.tellToEnd() // some end before, some while and some after there is no shim
	}
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "there is a new shim", func() (bool, string) {
		pid := n.ShimPid()
		return pid != 0 && pid != old && unix.Kill(pid, 0) == nil, fmt.Sprintf("pid %d", pid)
	})
	for _, w := range all[:endAtOnce] {
		w.endsWith(42, "Error")
	}
	for _, w := range all[endAtOnce:] {
		equal(t, "state", w.status().State, runtimeapi.ContainerState_CONTAINER_RUNNING)
		equal(t, "exec", w.sh("echo in"), "in")
	}
	for _, w := range all[endAtOnce:] {
		w.stop(10)
		w.endsWith(42, "Error")
	}
	for i, w := range all {
		if holes, missing := w.gaps(); holes > 1 {
			t.Errorf("writer %d: %d lines are missing in %d places", i, missing, holes)
		}
	}
}

// Both at once: the next daemon finds neither the shim nor its own memory.
// rows: D-160
func TestDaemonAndShimAreKilled(t *testing.T) {
	ours(t)
	leavesNothing(t)
	all := writers(t, n, 5)
	shim := n.ShimPid()
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(shim, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := n.Boot(); err != nil {
		t.Fatal(err)
	}
	for _, w := range all {
		equal(t, "state", w.status().State, runtimeapi.ContainerState_CONTAINER_RUNNING)
		w.stop(10)
		w.endsWith(42, "Error")
	}
}

// rows: D-12, D-160
func TestDaemonIsStoppedAndStarted(t *testing.T) {
	ours(t)
	leavesNothing(t)
	w := writers(t, n, 1)[0]
	restart(t, n, (*node.Node).Stop)
	equal(t, "state", w.status().State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	w.stop(10)
	w.endsWith(42, "Error")
	if _, missing := w.gaps(); missing > 0 {
		t.Errorf("%d lines are missing", missing)
	}
}

// A terminal has no name to open it by; the daemon keeps a spare of it.
// rows: D-162
func TestTerminalSurvivesTheShim(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(sh(`while read -r l; do echo "got $l"; done`), func(c *runtimeapi.ContainerConfig) { c.Stdin, c.Tty = true, true })
	c.ask("before")
	old := n.ShimPid()
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "there is a new shim", func() (bool, string) { return n.ShimPid() != old && n.ShimPid() != 0, "" })
	c.ask("after")
	restart(t, n, (*node.Node).Kill)
	c.ask("in the end")
}

// ask attaches, types a line and waits for the answer.
func (c *container) ask(text string) {
	c.t.Helper()
	term := openTerminal(c.t)
	cmd := c.node.Crictl(c.ctx, "attach", "-it", c.id)
	term.run(c.t, cmd)
	term.typeIn(text + "\n")
	term.shows(c.t, "got "+text)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
}

// The daemon is killed again and again while pods are made: what was half made is gone, or can be removed.
// rows: D-165
func TestKilledWhileMakingPods(t *testing.T) {
	ours(t)
	leavesNothing(t)
	logs := t.TempDir()
	for round := range 6 {
		made := make(chan struct{})
		go func() {
			defer close(made)
			for { // until the daemon is gone
				cfg := podConfig("half", logs)
				p, err := n.Runtimes.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
				if err != nil {
					return
				}
				c, err := n.Runtimes.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.PodSandboxId, SandboxConfig: cfg, Config: containerConfig("c", asleep())})
				if err != nil {
					return
				}
				if _, err := n.Runtimes.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
					return
				}
			}
		}()
		time.Sleep(time.Duration(150+37*round) * time.Millisecond) // any moment will do
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
		<-made
		if err := n.Boot(); err != nil {
			t.Fatal(err)
		}
		list, err := n.Runtimes.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range list.Items {
			(&pod{t: t, node: n, ctx: t.Context(), id: item.Id}).remove()
		}
	}
}

// A new shim takes the old one's place in its own process; not a line is lost.
// rows: D-12, D-160
func TestShimUpgrade(t *testing.T) {
	ours(t)
	leavesNothing(t)
	all := writers(t, n, 5)
	old := n.ShimPid()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.NewShim(); err != nil {
		t.Fatal(err)
	}
	if err := n.Boot(); err != nil {
		t.Fatal(err)
	}
	equal(t, "the shim's process", n.ShimPid(), old)
	for _, w := range all {
		equal(t, "exec", w.sh("echo in"), "in")
		w.stop(10)
		w.endsWith(42, "Error")
		if holes, missing := w.gaps(); missing > 0 {
			t.Errorf("%d lines are missing in %d places", missing, holes)
		}
	}
}

package blackbox

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// piece is a line of a log in short.
func (l line) piece() string {
	tag := "P"
	if l.full {
		tag = "F"
	}
	return fmt.Sprintf("%s %s %d", l.stream, tag, len(l.text))
}

// Lines of all lengths around the limit, and an end without a newline.
// rows: D-01, D-02, D-03, D-06, P-086, P-088, P-083, P-083b, P-085, GAP-33
func TestPiecesOfLines(t *testing.T) {
	ours(t) // others read their limit from their configuration
	p := newPod(t)
	const limit = 16384
	c := p.start(sh(fmt.Sprintf(`x() { head -c $1 /dev/zero | tr '\0' x; }
		(x %d; echo; x %d; echo; x %d; echo) > /lines; dd if=/lines bs=65536 count=1 2>/dev/null
		echo err >&2; i=0; while [ $i -lt 250 ]; do i=$((i+1)); echo; done; printf abcd`, limit-1, limit, limit+1)))
	c.ended()
	var got []string
	var last time.Time
	for _, l := range c.log() {
		if l.stream == "stdout" {
			if l.at.Before(last) {
				t.Errorf("%v is before the line above it", l.at)
			}
			last = l.at
			got = append(got, l.piece())
		} else {
			equal(t, "stderr", l.text, "err")
		}
	}
	want := []string{"stdout F 16383", "stdout F 16384", "stdout P 16384", "stdout F 1"}
	for range 250 {
		want = append(want, "stdout F 0")
	}
	want = append(want, "stdout P 4")
	equal(t, "pieces", strings.Join(got, "\n"), strings.Join(want, "\n"))
	for _, raw := range strings.Split(strings.TrimSuffix(c.rawLog(), "\n"), "\n") {
		stamp, _, _ := strings.Cut(raw, " ")
		if at, err := time.Parse("2006-01-02T15:04:05.000000000Z07:00", stamp); err != nil || at.IsZero() {
			t.Fatalf("a time without nanoseconds: %s", stamp)
		}
	}
}

// Where logs are, who may read them, and how long they stay.
// rows: K-11, K-11a, D-05, D-08, D-11, X-16, P-087, P-090a, D-14
func TestLogFiles(t *testing.T) {
	ours(t)
	p := newPod(t)
	at := func(path string) containerTweak {
		return func(c *runtimeapi.ContainerConfig) { c.LogPath = path }
	}
	logs := p.config.LogDirectory
	none := p.start(sh("echo nobody hears"), at(""))
	none.endsWith(0, "Completed")
	equal(t, "log path of a container without a log", none.status().LogPath, "")

	deep := p.start(sh("echo deep"), at("a/b/0.log"))
	deep.ended()
	equal(t, "a log in a directory that was not there", deep.stdout(), "deep\n")
	for path, most := range map[string]os.FileMode{"a": 0o755, "a/b": 0o755, "a/b/0.log": 0o640} {
		fi, err := os.Stat(filepath.Join(logs, path))
		if err != nil || fi.Mode().Perm()&^most != 0 {
			t.Errorf("%s: %v, %v, at most %v", path, fi.Mode(), err, most)
		}
	}
	if err := os.Symlink(filepath.Join(logs, "gone"), filepath.Join(logs, "dangling.log")); err != nil {
		t.Fatal(err)
	}
	dangling := p.start(sh("echo in place of the link"), at("dangling.log"))
	dangling.ended()
	equal(t, "a log in place of a dangling link", dangling.stdout(), "in place of the link\n")
	fi, err := os.Lstat(filepath.Join(logs, "dangling.log"))
	if err != nil || !fi.Mode().IsRegular() {
		t.Errorf("it is %v, %v", fi.Mode(), err)
	}

	if err := os.Rename(deep.logPath(), deep.logPath()+".old"); err != nil {
		t.Fatal(err)
	}
	_, err = n.Runtimes.ReopenContainerLog(p.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: deep.id})
	refused(t, err, codes.FailedPrecondition, deep.id[:8])
	if _, err := os.Stat(deep.logPath()); !os.IsNotExist(err) {
		t.Errorf("a refused reopen made a file: %v", err)
	}
	dangling.remove()
	equal(t, "the log of a container that was removed", dangling.stdout(), "in place of the link\n")

	before, _ := os.ReadDir(logs)
	if _, err := p.tryCreate(at("stray.log"), image("example.org/never-pulled:1"), asleep()); err == nil {
		t.Error("an image that is not there was used")
	}
	after, _ := os.ReadDir(logs)
	equal(t, "files after a creation that failed", len(after), len(before))
}

// A log may be opened anew while a stop waits.
// rows: P-090, R-16, P-084a
func TestReopenDuringStop(t *testing.T) {
	p := newPod(t)
	c := p.start(sh("trap 'echo told' TERM; echo ready; while [ ! -e /end ]; do sleep 0.05; done; echo last"))
	c.hasLogged("ready")
	stopped := make(chan error, 1)
	go func() {
		stopped <- second(n.Runtimes.StopContainer(p.ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 30}))
	}()
	c.hasLogged("told")
	if err := os.Rename(c.logPath(), c.logPath()+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Runtimes.ReopenContainerLog(p.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id}); err != nil {
		t.Fatal(err)
	}
	c.sh("touch /end")
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	c.ended()
	equal(t, "the new file", c.stdout(), "last\n")
}

// heedless is a container that does not end by SIGTERM, and says when it was told to.
func heedless() containerTweak {
	return sh("trap 'echo told' TERM; echo ready; while [ ! -e /end ]; do sleep 0.05; done")
}

// During the grace of a stop all sorts of execs work; they end with the container, and later ones are refused.
// rows: D-64, P-094, P-094a, P-095, P-096, P-096a, P-097, P-097a, P-098, P-098a, P-099, P-099a, P-093, R-10
func TestExecDuringGrace(t *testing.T) {
	p := newPod(t)
	c := p.start(heedless())
	c.hasLogged("ready")
	type result struct {
		r   *runtimeapi.ExecSyncResponse
		err error
	}
	background := func(script string) <-chan result {
		done := make(chan result, 1)
		go func() {
			r, err := n.Runtimes.ExecSync(p.ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: []string{"sh", "-c", script}})
			done <- result{r, err}
		}()
		return done
	}
	earlier := background("touch /begun; while [ ! -e /go ]; do sleep 0.02; done; echo earlier")
	endless := background("touch /begun2; while :; do sleep 1; done")
	trapped := background("trap 'exit 3' TERM; touch /begun3; while :; do sleep 0.1; done")
	var out syncBuffer
	streamed := n.Crictl(p.ctx, "exec", c.id, "sh", "-c", "echo streaming; exec sleep 1000")
	streamed.Stdout = &out
	if err := streamed.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the execs run", func() (bool, string) {
		return c.sh("ls /begun /begun2 /begun3 2>/dev/null | wc -l") == "3" && strings.Contains(out.String(), "streaming"), ""
	})
	stopped := make(chan error, 1)
	go func() {
		stopped <- second(n.Runtimes.StopContainer(p.ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 60}))
	}()
	c.hasLogged("told")

	for range 3 {
		equal(t, "an exec in the grace", c.sh("echo one; echo two | cat"), "one\ntwo")
	}
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() { equal(t, "execs at once", c.sh("echo at once"), "at once") })
	}
	group.Wait()
	term := openTerminal(t)
	tty := n.Crictl(p.ctx, "exec", "-it", c.id, "sh", "-c", "tty; echo by terminal")
	term.run(t, tty)
	term.shows(t, "by terminal")
	if err := tty.Wait(); err != nil {
		t.Errorf("an exec with a terminal: %v", err)
	}
	c.sh("touch /go")
	if got := <-earlier; got.err != nil || string(got.r.Stdout) != "earlier\n" || got.r.ExitCode != 0 {
		t.Errorf("an exec that began earlier: %v", got)
	}
	c.stop(0) // ends the other stop, too
	if err := <-stopped; err != nil {
		t.Errorf("the stop with a long grace: %v", err)
	}
	c.endsWith(137, "Error")
	for _, x := range []<-chan result{endless, trapped} {
		select {
		case got := <-x:
			if got.err == nil && got.r.ExitCode == 0 {
				t.Errorf("an exec that has no end: %v", got)
			}
		case <-time.After(5 * time.Second):
			t.Error("an exec outlives its container")
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- streamed.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a streamed exec that was killed ended well")
		}
	case <-time.After(10 * time.Second):
		t.Error("a streamed exec outlives its container")
		_ = streamed.Process.Kill()
	}
	if _, err := c.exec("true"); err == nil {
		t.Error("an exec after the end was accepted")
	}
}

// A caller that leaves during the grace does not end the container early; another may stop it at once. The signal comes once.
// rows: D-62, D-63, X-3, P-026, P-027, D-61
func TestStopIsCancelled(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(heedless())
	c.hasLogged("ready")
	ctx, cancel := context.WithTimeout(p.ctx, 300*time.Millisecond)
	defer cancel()
	_, err := n.Runtimes.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 60})
	refused(t, err, codes.DeadlineExceeded)
	long := make(chan error, 1)
	go func() {
		long <- second(n.Runtimes.StopContainer(p.ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 3600}))
	}()
	c.sh("sleep 0.3")
	equal(t, "state", c.status().State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	equal(t, "signals", strings.Count(c.stdout(), "told"), 1)
	start := time.Now()
	c.stop(0)
	if err := <-long; err != nil || time.Since(start) > 3*time.Second {
		t.Errorf("the stop that had an hour: %v after %v", err, time.Since(start))
	}
	c.endsWith(137, "Error")
}

// A hundred and fifty stops with less and less grace, all at once.
// rows: P-025, D-62
func TestManyStops(t *testing.T) {
	p := newPod(t)
	c := p.start(heedless())
	c.hasLogged("ready")
	start := time.Now()
	var group sync.WaitGroup
	for grace := 150; grace > 0; grace-- {
		group.Go(func() {
			if _, err := n.Runtimes.StopContainer(p.ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: int64(grace)}); err != nil {
				t.Errorf("stop with %d s: %v", grace, err)
			}
		})
	}
	group.Wait()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the shortest grace was 1 s; it took %v", took)
	}
	c.endsWith(137, "Error")
}

// The end of a pod gives no grace, and does not take long; as kubeadm does it.
// rows: D-65, D-66, P-007, R-03, R-04
func TestPodsEndQuickly(t *testing.T) {
	p := newPod(t)
	for range 3 {
		c := p.start(heedless())
		c.hasLogged("ready")
	}
	ctx, cancel := context.WithTimeout(p.ctx, 2*time.Second)
	defer cancel()
	if _, err := n.Runtimes.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Error(err)
	}
	if _, err := n.Runtimes.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Error(err)
	}
}

// Two attached clients see the same from the moment they come; what one types both see answered; and when both leave
// the container runs on.
// rows: D-78, D-79, R-19, K-13
func TestAttachTogether(t *testing.T) {
	p := newPod(t)
	c := p.start(sh(`echo before; while read -r l; do echo "got $l"; done`), func(c *runtimeapi.ContainerConfig) { c.Stdin = true })
	c.hasLogged("before")
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	var seen [2]syncBuffer
	var stdin [2]interface{ Write([]byte) (int, error) }
	for i := range seen {
		cmd := n.Crictl(ctx, "attach", "-i", c.id)
		cmd.Stdout = &seen[i]
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { cancel(); _ = cmd.Wait() }()
		stdin[i] = in
	}
	for i := range seen {
		eventually(t, 10*time.Second, "both see the answer", func() (bool, string) {
			if _, err := stdin[i].Write([]byte(itoa(i) + "\n")); err != nil {
				return false, err.Error()
			}
			time.Sleep(50 * time.Millisecond) // a person's pace: a client that has not arrived yet misses it
			want := "got " + itoa(i) + "\n"
			return strings.Contains(seen[0].String(), want) && strings.Contains(seen[1].String(), want), seen[0].String() + "|" + seen[1].String()
		})
	}
	if strings.Contains(seen[0].String(), "before") {
		t.Error("what was written earlier is shown again")
	}
	cancel()
	c.sh("true")
	equal(t, "state", c.status().State, runtimeapi.ContainerState_CONTAINER_RUNNING)

	none := p.start(asleep())
	equal(t, "standard input of a container that has none", none.sh("readlink /proc/1/fd/0"), "/dev/null")
}

// A log disk that is full costs lines, never the container.
// rows: D-10
func TestFullLogDisk(t *testing.T) {
	ours(t)
	p := newPod(t)
	disk := filepath.Join(p.config.LogDirectory, "full")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	mountTmpfs(t, disk)
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	block := bytes.Repeat([]byte{1}, 1<<20)
	f, err := os.Create(filepath.Join(disk, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(block)
	}
	c := p.start(sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done"), func(c *runtimeapi.ContainerConfig) { c.LogPath = "full/0.log" })
	c.endsWith(0, "Completed")
}

package output

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// fifo makes a FIFO and opens both of its ends as shim and container do.
func fifo(t testing.TB) (ours, containers *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	must(t, unix.Mkfifo(path, 0o600))
	ours, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	must(t, err)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0) // blocking, past Go's poller
	must(t, err)
	containers = os.NewFile(uintptr(fd), path)
	t.Cleanup(func() { _ = ours.Close(); _ = containers.Close() })
	return ours, containers
}

// container is an Output and the container's ends of it.
type container struct {
	*Output
	log      string
	out, err *os.File
	cfg      Config
}

func open(t testing.TB, log string) *container {
	t.Helper()
	c := &container{log: log}
	c.cfg = Config{LogPath: log, Log: quiet()}
	c.cfg.Stdout, c.out = fifo(t)
	c.cfg.Stderr, c.err = fifo(t)
	o, err := Open(c.cfg)
	must(t, err)
	c.Output = o
	t.Cleanup(func() { _ = o.Close() })
	return c
}

func (c *container) lines(t testing.TB) []parsed {
	t.Helper()
	b, err := os.ReadFile(c.log)
	must(t, err)
	return parseLog(t, b)
}

func quiet() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, f *os.File, s string) {
	t.Helper()
	_, err := f.WriteString(s)
	must(t, err)
}

// until waits for what another goroutine brings about.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("10 s and still not: %s", what)
		}
	}
}

func within(t testing.TB, limit time.Duration, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if d := time.Since(start); d > limit {
		t.Errorf("%s took %v, more than %v", what, d, limit)
	}
}

// rows: D-01, D-02, D-04, D-06
func TestLines(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "0.log"))
	before := time.Now()
	write(t, c.out, "one\ntwo\r\nthr")
	until(t, "an unfinished line is in the log", func() bool { return len(c.lines(t)) == 3 })
	write(t, c.out, "ee\n")
	until(t, "the end of the line is in the log", func() bool { return len(c.lines(t)) == 4 })
	write(t, c.err, "oh")
	c.Drain()
	var got []string
	for _, l := range c.lines(t) {
		if l.at.Before(before) || l.at.After(time.Now()) {
			t.Errorf("time %v is not that of the write", l.at)
		}
		got = append(got, fmt.Sprintf("%s %v %q", l.stream, l.part, l.content))
	}
	want := `stdout false "one", stdout false "two\r", stdout true "thr", stdout false "ee", stderr true "oh"`
	if s := strings.Join(got, ", "); s != want {
		t.Errorf("got %s, want %s", s, want)
	}
	if info, err := os.Stat(c.log); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode of the log: %v, %v", info.Mode(), err)
	}
}

// TestFlood writes to both streams at once, in chunks that end anywhere.
func TestFlood(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "0.log"))
	var want [2]bytes.Buffer
	for i := range 60000 {
		fmt.Fprintf(&want[i%2], "%d %s\r\n", i, strings.Repeat("z", i*i%211))
	}
	want[0].Write(bytes.Repeat([]byte{0, 255, 13}, 100000))
	var wg sync.WaitGroup
	for k, f := range []*os.File{c.out, c.err} {
		wg.Go(func() {
			for b, n := want[k].Bytes(), 1; len(b) > 0; n = n*7%9973 + 1 {
				m, err := f.Write(b[:min(n, len(b))])
				if err != nil {
					t.Error(err)
					return
				}
				b = b[m:]
			}
		})
	}
	wg.Wait()
	c.Drain()
	lines := c.lines(t)
	for k := range kind(2) {
		if written(lines, k.String()) != want[k].String() {
			t.Errorf("%s differs", k)
		}
	}
}

// rows: D-09
func TestReopenUnderLoad(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "0.log"))
	stop := make(chan struct{})
	sent := make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				sent <- n
				return
			default:
				fmt.Fprintf(c.out, "line %d\n", n)
			}
		}
	}()
	var logs []string
	for i := range 100 {
		until(t, "the log has lines", func() bool { info, err := os.Stat(c.log); return err == nil && info.Size() > 0 })
		rotated := fmt.Sprintf("%s.%03d", c.log, i)
		must(t, os.Rename(c.log, rotated))
		must(t, c.Reopen())
		if _, err := os.Stat(c.log); err != nil {
			t.Fatalf("after Reopen: %v", err)
		}
		before, err := os.ReadFile(rotated)
		must(t, err)
		logs = append(logs, string(before))
	}
	close(stop)
	n := <-sent
	c.Drain()
	last, err := os.ReadFile(c.log)
	must(t, err)
	var want strings.Builder
	for i := range n {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if got := written(parseLog(t, []byte(strings.Join(logs, "")+string(last))), "stdout"); got != want.String() {
		t.Errorf("%d lines were written, %d are in the logs, or they differ", n, strings.Count(got, "\n"))
	}
	must(t, c.Close())
	if err := c.Reopen(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reopen of what is closed: %v", err)
	}
}

func TestInTheWay(t *testing.T) {
	dir := t.TempDir()
	canary := filepath.Join(dir, "canary")
	must(t, os.WriteFile(canary, []byte("safe"), 0o600))
	for name, put := range map[string]func(path string) error{
		"link":      func(p string) error { return os.Symlink(canary, p) },
		"directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"fifo":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"device":    func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
	} {
		path := filepath.Join(dir, name)
		must(t, put(path))
		in, _ := fifo(t)
		if _, err := Open(Config{LogPath: path, Stdout: in, Log: quiet()}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s is gone: %v", name, err)
		}
		c := open(t, filepath.Join(dir, name+".log"))
		must(t, os.Rename(c.log, c.log+".1"))
		must(t, put(c.log))
		if err := c.Reopen(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("reopen: %s: %v", name, err)
		}
		write(t, c.out, "on it goes\n")
		c.Drain()
		if b, _ := os.ReadFile(c.log + ".1"); !strings.HasSuffix(string(b), " on it goes\n") {
			t.Errorf("%s: after a failed Reopen the old log has %q", name, b)
		}
	}
	if b, err := os.ReadFile(canary); err != nil || string(b) != "safe" {
		t.Errorf("canary: %q, %v", b, err)
	}
	in, _ := fifo(t)
	if _, err := Open(Config{LogPath: filepath.Join(dir, "no", "log"), Stdout: in, Log: quiet()}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// rows: K-11a
func TestDanglingLinkIsReplaced(t *testing.T) {
	dir := t.TempDir()
	log, target := filepath.Join(dir, "0.log"), filepath.Join(dir, "target")
	must(t, os.Symlink(target, log))
	c := open(t, log)
	write(t, c.out, "x\n")
	c.Drain()
	if info, err := os.Lstat(log); err != nil || !info.Mode().IsRegular() || len(c.lines(t)) != 1 {
		t.Errorf("log: %v, %v", info, err)
	}
	if _, err := os.Lstat(target); !os.IsNotExist(err) {
		t.Errorf("the link's target was made: %v", err)
	}
}

func TestNotPollable(t *testing.T) {
	f, err := os.Open("output_test.go")
	must(t, err)
	defer f.Close()
	if _, err := Open(Config{Stdout: f, Log: quiet()}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a file as stdout: %v", err)
	}
}

// rows: D-10
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	c := open(t, filepath.Join(dir, "0.log"))
	write(t, c.err, "stderr before\nwithout an end")
	until(t, "stderr is in the log", func() bool { return len(c.lines(t)) == 2 })

	var sent strings.Builder
	within(t, 5*time.Second, "writing to a full disk", func() {
		for i := range 20000 {
			line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", i%97))
			sent.WriteString(line)
			write(t, c.out, line)
		}
	})
	until(t, "output is lost and the pipe is empty", func() bool { return c.Output.log.lost.some.Load() && pending(t, c.out) == 0 })
	full := c.lines(t) // well formed, with nothing torn
	must(t, os.Rename(c.log, c.log+".1"))
	must(t, os.Truncate(c.log+".1", 0)) // the disk has room again
	must(t, c.Reopen())
	write(t, c.out, "after\n")
	c.Drain()

	lines := append(full, c.lines(t)...)
	var got strings.Builder
	open, marks, dropped := false, 0, 0
	for _, l := range lines {
		var n int
		if _, err := fmt.Sscanf(l.content, "criserver: %d bytes of output were dropped: no space left on device", &n); err == nil && l.stream == "stderr" {
			if open || l.part {
				t.Errorf("a mark is part of another line")
			}
			marks, dropped = marks+1, dropped+n
		}
		if l.stream == "stderr" {
			open = l.part
		} else if marks == 0 {
			got.WriteString(l.content)
			if !l.part {
				got.WriteByte('\n')
			}
		}
	}
	if last := lines[len(lines)-2:]; marks == 0 || last[1].content != "after" || !strings.HasPrefix(last[0].content, "criserver: ") {
		t.Errorf("%d marks; the log ends with %+v", marks, last)
	}
	if !strings.HasPrefix(sent.String(), strings.TrimSuffix(got.String(), "\n")) || got.Len() < 100<<10 {
		t.Errorf("the first %d bytes of the log are not what was written first", got.Len())
	}
	// Each line that lost its rest was ended with a newline of ours.
	if kept := len(written(lines, "stdout")) - len("after\n"); kept+dropped < sent.Len() || kept+dropped > sent.Len()+marks {
		t.Errorf("%d bytes were sent, %d are in the log, %d were dropped", sent.Len(), kept, dropped)
	}
}

// pending is how much stands in a pipe.
func pending(t testing.TB, f *os.File) int {
	t.Helper()
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
	must(t, err)
	return n
}

// slowFile is a log whose writes wait, once it is told to, as those to a server that is gone.
type slowFile struct {
	*os.File
	mu      sync.Mutex
	release chan struct{} // nil: writes do not wait
}

func (f *slowFile) hang() (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan struct{})
	f.release = c
	return func() {
		f.mu.Lock()
		f.release = nil
		f.mu.Unlock()
		close(c)
	}
}

func (f *slowFile) Write(b []byte) (int, error) {
	f.mu.Lock()
	c := f.release
	f.mu.Unlock()
	if c != nil {
		<-c
	}
	return f.File.Write(b)
}

func openSlow(t *testing.T) (*container, *slowFile) {
	c := open(t, filepath.Join(t.TempDir(), "0.log"))
	l := c.Output.log
	l.lock <- struct{}{}
	slow := &slowFile{File: l.file.(*os.File)}
	l.file = slow
	<-l.lock
	return c, slow
}

func TestWriteHangs(t *testing.T) {
	c, slow := openSlow(t)
	release := slow.hang()
	chunk := strings.Repeat(strings.Repeat("y", 99)+"\n", 100)
	within(t, 4*time.Second, "writing while the log hangs", func() {
		for range 500 {
			write(t, c.out, chunk)
			write(t, c.err, chunk)
		}
	})
	until(t, "the pipes are empty", func() bool { return pending(t, c.out)+pending(t, c.err) == 0 })
	within(t, 3*time.Second, "Reopen while the log hangs", func() {
		if err := c.Reopen(); !errdefs.IsUnavailable(err) {
			t.Errorf("Reopen while a write hangs: %v", err)
		}
	})
	release()
	until(t, "the log is taken as usable again", func() bool { return c.Output.log.stuck.Load() == 0 })
	write(t, c.out, "after\n")
	c.Drain()

	lines := c.lines(t)
	last := lines[len(lines)-2:]
	var dropped int
	if _, err := fmt.Sscanf(last[0].content, "criserver: %d bytes of output were dropped: the log did not take", &dropped); err != nil || last[1].content != "after" {
		t.Fatalf("the log ends with %+v (%v)", last, err)
	}
	got := len(written(lines, "stdout")) + len(written(lines, "stderr")) - len(last[0].content) - len("\nafter\n")
	// The pieces that were in hand may have ended within a line, which was then ended with a newline of ours.
	if total := 2 * 500 * len(chunk); got+dropped < total || got+dropped > total+2 || got == 0 {
		t.Errorf("%d bytes are in the log and %d were dropped, of %d", got, dropped, total)
	}
}

func TestDrainWhileWriteHangs(t *testing.T) {
	c, slow := openSlow(t)
	release := slow.hang()
	write(t, c.out, "a\n")
	write(t, c.err, "b\n")
	within(t, 4*time.Second, "Drain while the log hangs", c.Drain)
	if err := c.Close(); !errdefs.IsUnavailable(err) {
		t.Errorf("Close: %v", err)
	}
	release()
	until(t, "the file is closed", func() bool { return errors.Is(slow.File.Sync(), os.ErrClosed) })
}

// rows: D-78
func TestAttach(t *testing.T) {
	c := open(t, "") // no log: attaching works all the same
	type client struct {
		out, err bytes.Buffer
		wg       sync.WaitGroup
		done     <-chan struct{}
		detach   func()
	}
	attach := func() *client {
		a := &client{}
		var w [2]*os.File
		for i, b := range []*bytes.Buffer{&a.out, &a.err} {
			r, x, err := os.Pipe()
			must(t, err)
			w[i] = x
			a.wg.Go(func() { _, _ = io.Copy(b, r); _ = r.Close() })
		}
		a.done, a.detach = c.Attach(w[0], w[1])
		return a
	}
	write(t, c.out, "nobody sees this\n")
	until(t, "it was read", func() bool { return pending(t, c.out) == 0 })
	c.Attach(nil, nil)
	first := attach()
	write(t, c.out, "one\x00\r\n")
	until(t, "it was read", func() bool { return pending(t, c.out) == 0 })
	second := attach()
	write(t, c.err, "two")
	until(t, "it was read", func() bool { return pending(t, c.err) == 0 })
	second.detach()
	<-second.done
	second.wg.Wait()
	write(t, c.out, "three\n")
	c.Drain()
	<-first.done
	first.wg.Wait()
	if first.out.String() != "one\x00\r\nthree\n" || first.err.String() != "two" {
		t.Errorf("first: %q, %q", first.out.String(), first.err.String())
	}
	if second.out.String() != "" || second.err.String() != "two" {
		t.Errorf("second: %q, %q", second.out.String(), second.err.String())
	}
	late := attach()
	<-late.done
	late.wg.Wait()
}

func TestSlowClientIsCutOff(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "0.log"))
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	slow, _ := c.Attach(w, nil)
	r2, w2, err := os.Pipe()
	must(t, err)
	gone, _ := c.Attach(w2, nil)
	must(t, r2.Close())
	chunk := strings.Repeat("z", 9999) + "\n"
	within(t, 5*time.Second, "writing with a client that does not read", func() {
		for range 1000 {
			write(t, c.out, chunk)
		}
	})
	<-slow
	<-gone
	c.Drain()
	if got := len(written(c.lines(t), "stdout")); got != 1000*len(chunk) {
		t.Errorf("the log has %d bytes", got)
	}
	if n, err := io.Copy(io.Discard, r); err != nil || n < 64<<10 {
		t.Errorf("the slow client could read %d bytes, %v", n, err)
	}
}

// TestDrainWithHeirs has a grandchild that keeps the FIFOs open, and goes on writing.
func TestDrainWithHeirs(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "0.log"))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for line := []byte("still here\n"); ; {
			select {
			case <-stop:
				return
			default:
				_, _ = c.out.Write(line)
			}
		}
	})
	write(t, c.err, "last words")
	within(t, 5*time.Second, "Drain", c.Drain)
	if got := written(c.lines(t), "stderr"); got != "last words" {
		t.Errorf("stderr: %q", got)
	}
	c.Drain() // once more changes nothing
	must(t, c.Close())
	close(stop)
	fd, err := unix.Open(c.out.Name(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	must(t, err)
	readOnce(fd, make([]byte, 64<<10)) // frees a writer that waits
	must(t, unix.Close(fd))
	wg.Wait()
}

// TestStop stands for a shim that executes its successor again and again under load.
func TestStop(t *testing.T) {
	c := open(t, filepath.Join(t.TempDir(), "0.log"))
	const lines = 200000
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range lines {
			fmt.Fprintf(c.out, "%d\n", i)
		}
	})
	for range 50 {
		c.Stop()
		for _, f := range []*os.File{c.cfg.Stdout, c.cfg.Stderr} {
			raw, err := f.SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) {
				if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
					t.Errorf("after Stop the flags are %#x, %v", flags, err)
				}
			}))
		}
		next, err := Open(c.cfg)
		must(t, err)
		if c.Output.log.file != nil {
			t.Error("after Stop the log is open")
		}
		c.Output = next
	}
	wg.Wait()
	c.Drain()
	must(t, c.Close())
	var want strings.Builder
	for i := range lines {
		fmt.Fprintln(&want, i)
	}
	if got := written(c.lines(t), "stdout"); got != want.String() {
		t.Errorf("the log has %d bytes of %d", len(got), want.Len())
	}
}

// rows: K-15
func TestTerminal(t *testing.T) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	must(t, err)
	raw, err := master.SyscallConn()
	must(t, err)
	var slave string
	must(t, raw.Control(func(fd uintptr) {
		n, err := unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		must(t, err)
		must(t, unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0))
		slave = fmt.Sprintf("/dev/pts/%d", n)
	}))
	c := &container{log: filepath.Join(t.TempDir(), "0.log")}
	c.Output, err = Open(Config{LogPath: c.log, Terminal: true, Stdout: master, Log: quiet()})
	must(t, err)
	_, w, err := os.Pipe()
	must(t, err)
	c.Attach(nil, w)
	if _, err := w.Write(newline); !errors.Is(err, os.ErrClosed) {
		t.Errorf("a terminal's stderr stays open: %v", err)
	}
	say := func(s string) {
		tty, err := os.OpenFile(slave, os.O_RDWR|unix.O_NOCTTY, 0)
		must(t, err)
		write(t, tty, s)
		must(t, tty.Close())
	}
	say("one\n")
	until(t, "the first line is in the log", func() bool { return len(c.lines(t)) == 1 })
	say("two\n") // after all others had closed it
	until(t, "the second line is in the log", func() bool { return len(c.lines(t)) == 2 })
	say("three")
	c.Drain()
	must(t, c.Close())
	if got := written(c.lines(t), "stdout"); got != "one\r\ntwo\r\nthree" {
		t.Errorf("got %q", got)
	}
}

// TestIdle measures what a container costs that writes now and then.
func TestIdle(t *testing.T) {
	const n = 300
	goroutines := runtime.NumGoroutine()
	var containers []*container
	dir := t.TempDir()
	memory := func() uint64 {
		runtime.GC()
		runtime.GC() // pools are emptied by the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapInuse + m.StackInuse
	}
	before := memory()
	for i := range n {
		c := open(t, filepath.Join(dir, fmt.Sprint(i)))
		write(t, c.out, "hello\n")
		containers = append(containers, c)
	}
	for _, c := range containers {
		until(t, "the line is in the log", func() bool { return len(c.lines(t)) == 1 })
	}
	if per := int64(memory()-before) / n; per > 24<<10 {
		t.Errorf("an idle container takes %d bytes", per)
	} else {
		t.Logf("an idle container takes %d bytes, files of the test included", per)
	}
	if per := (runtime.NumGoroutine() - goroutines) / n; per > 2 {
		t.Errorf("%d goroutines per container", per)
	}
	for _, c := range containers {
		must(t, c.Close())
	}
	until(t, "the goroutines are gone", func() bool { return runtime.NumGoroutine() <= goroutines })
}

// TestMain is also the process that writes for BenchmarkLog.
func TestMain(m *testing.M) {
	var size, times int
	if n, _ := fmt.Sscan(os.Getenv("OUTPUT_TEST_WRITE"), &size, &times); n == 2 {
		data := bytes.Repeat(append(bytes.Repeat([]byte("x"), 127), '\n'), size/128)
		for range times {
			_, _ = unix.Write(1, data)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// BenchmarkLog brings lines of 128 bytes from another process through a FIFO into a file. The CPU time is our own, without the writer's.
func BenchmarkLog(b *testing.B) {
	for _, c := range []struct {
		name string
		size int
	}{{"write=128", 128}, {"write=4Ki", 4 << 10}, {"write=64Ki", 64 << 10}, {"write=1Mi", 1 << 20}} {
		b.Run(c.name, func(b *testing.B) {
			o := open(b, filepath.Join(b.TempDir(), "0.log"))
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), fmt.Sprintf("OUTPUT_TEST_WRITE=%d %d", c.size, b.N))
			cmd.Stdout = o.out
			b.SetBytes(int64(c.size))
			b.ResetTimer()
			start := cpu(b)
			must(b, cmd.Run())
			o.Drain()
			b.ReportMetric((cpu(b)-start).Seconds()/(float64(b.N)*float64(c.size)/1e9), "cpu-s/GB")
		})
	}
}

func cpu(t testing.TB) time.Duration {
	var u unix.Rusage
	must(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

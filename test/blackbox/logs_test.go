package blackbox

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

// other says that the runtime is not ours.
func other() bool { return *node.Endpoint != "" }

func itoa(n int) string { return strconv.Itoa(n) }

// line is a line of a log in CRI format: "2026-01-02T03:04:05.123456789Z stdout F text".
type line struct {
	at     time.Time
	stream string
	full   bool // F: it ends a line; P: more follows
	text   string
}

// parseLog reads a whole log; what is not in CRI format fails the test.
func parseLog(t *testing.T, raw string) (lines []line) {
	t.Helper()
	for i, l := range strings.Split(strings.TrimSuffix(raw, "\n"), "\n") {
		if l == "" && raw == "" {
			continue
		}
		f := strings.SplitN(l, " ", 4)
		if len(f) != 4 || (f[1] != "stdout" && f[1] != "stderr") || (f[2] != "F" && f[2] != "P") {
			t.Fatalf("log line %d is not in CRI format: %.200q", i+1, l)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil {
			t.Fatalf("log line %d: %v", i+1, err)
		}
		lines = append(lines, line{at: at, stream: f[1], full: f[2] == "F", text: f[3]})
	}
	return lines
}

// join puts together what was written to one stream.
func join(lines []line, stream string) string {
	var b strings.Builder
	for _, l := range lines {
		if l.stream == stream {
			b.WriteString(l.text)
			if l.full {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

func (c *container) log() []line {
	c.t.Helper()
	return parseLog(c.t, c.rawLog())
}

func (c *container) stdout() string {
	c.t.Helper()
	return join(c.log(), "stdout")
}

// hasLogged waits until the log has the text.
func (c *container) hasLogged(text string) {
	c.t.Helper()
	eventually(c.t, 10*time.Second, fmt.Sprintf("the log has %q", text), func() (bool, string) {
		raw := c.rawLog()
		return strings.Contains(raw, text), raw
	})
}

// rows: D-01, D-02, D-04, D-05, P-083, P-085
func TestLogFormat(t *testing.T) {
	p := newPod(t)
	start := time.Now()
	c := p.start(sh(`echo out; echo err >&2; printf 'a\r\n\nlast without newline'`))
	c.ended()
	lines := c.log()
	stdout := join(lines, "stdout")
	if other() { // containerd drops the carriage return
		stdout = strings.Replace(stdout, "a\n", "a\r\n", 1)
	}
	equal(t, "stdout", stdout, "out\na\r\n\nlast without newline")
	equal(t, "stderr", join(lines, "stderr"), "err\n")
	for _, l := range lines {
		if l.at.Before(start.Add(-time.Second)) || l.at.After(time.Now().Add(time.Second)) {
			t.Errorf("a line is dated %v", l.at)
		}
	}
	fi, err := os.Stat(c.logPath())
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm()&0o007 != 0 {
		t.Errorf("everybody may read the log: %v", fi.Mode())
	}
}

// rows: D-03
func TestLongLines(t *testing.T) {
	p := newPod(t)
	c := p.start(sh(`head -c 100000 /dev/zero | tr '\0' x; echo; echo short`))
	c.ended()
	lines := c.log()
	equal(t, "length", len(join(lines, "stdout")), 100000+1+len("short\n"))
	for _, l := range lines {
		if len(l.text) > 16384 {
			t.Errorf("a line has %d bytes", len(l.text))
		}
	}
	equal(t, "the last line", lines[len(lines)-1].text, "short")
}

func TestBinaryOutput(t *testing.T) {
	p := newPod(t)
	c := p.start(sh(`i=0; while [ $i -lt 256 ]; do printf "\\$(printf %03o $i)"; i=$((i+1)); done; echo`))
	c.ended()
	var want strings.Builder
	for i := range 256 {
		want.WriteByte(byte(i))
	}
	equal(t, "every byte", c.stdout(), want.String()+"\n")
}

// An unfinished line is not held back: a prompt must show.
// rows: D-02, P-085, P-088
func TestPromptIsWrittenAtOnce(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(sh(`printf 'password: '; trap 'echo; exit 0' TERM; sleep 1000 & wait`))
	c.hasLogged("stdout P password: ")
	c.stop(10)
	c.ended()
	equal(t, "the whole", c.stdout(), "password: \n")
}

// Ten rotations in the middle of a stream: every line is in exactly one file.
// rows: R-16, D-07, D-09, P-084, P-084a
func TestRotation(t *testing.T) {
	p := newPod(t)
	c := p.start(sh(`i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo "line $i"; done; echo done`))
	var all strings.Builder
	for i := range 10 {
		old := c.logPath() + "." + itoa(i)
		if err := os.Rename(c.logPath(), old); err != nil {
			t.Fatal(err)
		}
		_, err := n.Runtimes.ReopenContainerLog(p.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id})
		if c.status().State == runtimeapi.ContainerState_CONTAINER_RUNNING && err != nil {
			t.Fatalf("reopen: %v", err)
		}
		if err == nil {
			if _, err := os.Stat(c.logPath()); err != nil {
				t.Fatalf("after reopen: %v", err)
			}
		}
		b, err := os.ReadFile(old)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
		if c.status().State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			break
		}
	}
	c.ended()
	if b, err := os.ReadFile(c.logPath()); err == nil {
		all.Write(b)
	}
	inSequence(t, join(parseLog(t, all.String()), "stdout"), 20000)
}

// inSequence checks "line 1" ... "line last", then "done".
func inSequence(t *testing.T, text string, last int) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, l := range lines[:min(len(lines), last)] {
		if want := "line " + itoa(i+1); l != want {
			t.Fatalf("line %d is %q", i+1, l)
		}
	}
	if len(lines) != last+1 || lines[last] != "done" {
		t.Errorf("%d lines, the last is %q; want %d and then `done`", len(lines), lines[len(lines)-1], last)
	}
}

// rows: R-16, D-08, P-087
func TestOnlyRunningLogsAreReopened(t *testing.T) {
	p := newPod(t)
	c := p.start(sh("exit 0"))
	c.ended()
	if _, err := n.Runtimes.ReopenContainerLog(p.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.id}); err == nil {
		t.Error("the log of a container that has ended was opened again")
	}
}

package wire

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// pair returns both ends of a connection; raw is what is below the first.
func pair(t testing.TB) (a, b *Conn, raw *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	a, b = NewConn(raw), NewConn(other)
	for _, c := range []*Conn{a, b} {
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	return a, b, raw
}

func TestSendRecv(t *testing.T) {
	a, b, _ := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, text := range []string{"", "short", strings.Repeat("long ", 1<<20)} {
		sent := make(chan error, 1)
		go func() { sent <- a.Send(Request{Method: Hello, ID: text}, w, r) }()
		var got Request
		files, err := b.Recv(&got)
		if err != nil || got.ID != text || got.Method != Hello || len(files) != 2 {
			t.Fatalf("%d bytes: got %.20q, %d files: %v", len(text), got.ID, len(files), err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(files[0], "x"); err != nil { // it is the pipe
			t.Fatal(err)
		}
		var x [1]byte
		if _, err := r.Read(x[:]); err != nil || x[0] != 'x' {
			t.Fatalf("%q %v", x, err)
		}
		CloseFiles(files)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// The deadline works only on a nonblocking descriptor: Send has not changed it.
	if err := r.SetReadDeadline(time.Now()); err != nil {
		t.Errorf("the pipe was made blocking: %v", err)
	}
}

// An exec as the daemon asks for it, with the descriptors of three streams, and the answer.
func BenchmarkExec(b *testing.B) {
	daemon, shim, _ := pair(b)
	r, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	request := Request{Method: Exec, ID: strings.Repeat("c", 64), Exec: &ExecArgs{Stdin: true, Stdout: true, Stderr: true,
		Process: &specs.Process{Args: []string{"/bin/true"}, Env: []string{"PATH=/usr/bin:/bin", "HOSTNAME=web-0"}, Cwd: "/"}}}
	if err := errors.Join(daemon.SetDeadline(time.Time{}), shim.SetDeadline(time.Time{})); err != nil {
		b.Fatal(err)
	}
	go func() {
		for {
			var req Request
			files, err := shim.Recv(&req)
			CloseFiles(files)
			if err != nil || shim.Send(Reply{Pid: 4711}) != nil {
				return // the daemon has hung up
			}
		}
	}()
	b.ReportAllocs()
	for b.Loop() {
		if err := daemon.Send(request, r, w, w); err != nil {
			b.Fatal(err)
		}
		var reply Reply
		if _, err := daemon.Recv(&reply); err != nil || reply.Pid == 0 {
			b.Fatal(reply, err)
		}
	}
}

func TestHangup(t *testing.T) {
	a, b, _ := pair(t)
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Recv(new(Request)); !errors.Is(err, io.EOF) {
		t.Errorf("after a hangup: %v", err)
	}
	b.WaitHangup()
}

func TestMalformed(t *testing.T) {
	header := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	for _, tc := range []struct {
		name, want string
		bytes      []byte
	}{
		{"cut header", "unexpected EOF", []byte{0, 0}},
		{"cut body", "unexpected EOF", append(header(10), "abc"...)},
		{"no JSON", "decode message", append(header(3), "abc"...)},
		{"other JSON", "decode message", append(header(3), "[1]"...)},
		{"empty", "decode message", header(0)},
		{"too large", "the limit is", header(MaxFrame + 1)},
		{"huge", "the limit is", header(1<<32 - 1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, b, raw := pair(t)
			if _, err := raw.Write(tc.bytes); err != nil {
				t.Fatal(err)
			}
			if err := raw.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Recv(new(Request)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestTooManyFiles(t *testing.T) {
	a, b, raw := pair(t)
	many := make([]*os.File, MaxFiles+1)
	fds := make([]int, len(many))
	for i := range many {
		many[i], fds[i] = os.Stdin, 0
	}
	if err := a.Send(Request{}, many...); err == nil || !strings.Contains(err.Error(), "the limit is") {
		t.Errorf("send: %v", err)
	}
	if err := a.Send(Request{ID: strings.Repeat("x", MaxFrame)}); err == nil || !strings.Contains(err.Error(), "the limit is") {
		t.Errorf("send: %v", err)
	}
	before := countDescriptors(t)
	if _, _, err := raw.WriteMsgUnix([]byte("\x00\x00\x00\x02{}"), unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
	files, err := b.Recv(new(Request))
	if err == nil || len(files) != 0 {
		t.Errorf("received %d files: %v", len(files), err)
	}
	if now := countDescriptors(t); now != before {
		t.Errorf("%d descriptors, were %d", now, before)
	}
}

func countDescriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

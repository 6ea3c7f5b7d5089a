package streaming

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"runtime"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/criserver/criserver/pkg/sandbox"
)

// fakeRuntime does in each call what its test says.
type fakeRuntime struct {
	exec    func(ctx context.Context, cmd []string, s sandbox.Streams) (int32, error)
	attach  func(ctx context.Context, s sandbox.Streams) error
	forward func(ctx context.Context, port int32, c io.ReadWriteCloser) error
}

func (f *fakeRuntime) Exec(ctx context.Context, _ string, cmd []string, s sandbox.Streams) (int32, error) {
	return f.exec(ctx, cmd, s)
}

func (f *fakeRuntime) Attach(ctx context.Context, _ string, s sandbox.Streams) error {
	return f.attach(ctx, s)
}

func (f *fakeRuntime) PortForward(ctx context.Context, _ string, port int32, c io.ReadWriteCloser) error {
	defer c.Close()
	return f.forward(ctx, port, c)
}

func newServer(t testing.TB, r *fakeRuntime) *Server {
	t.Helper()
	log := logrus.New()
	log.SetOutput(io.Discard)
	s, err := New(Options{Log: logrus.NewEntry(log)}, r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// dial opens a session over SPDY.
func dial(t testing.TB, url string, protocol string) httpstream.Connection {
	t.Helper()
	conn, resp, err := tryDial(url, protocol)
	if err != nil {
		t.Fatalf("dial %s: %v (%v)", url, err, resp)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func tryDial(url, protocol string) (httpstream.Connection, *http.Response, error) {
	rt, err := spdy.NewRoundTripper(&tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return nil, nil, err
	}
	req, err := http.NewRequest(http.MethodPost, url, nil)
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set(httpstream.HeaderProtocolVersion, protocol)
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		return nil, nil, err
	}
	conn, err := rt.NewConnection(resp)
	return conn, resp, err
}

// open opens a stream of an exec or attach.
func open(t testing.TB, conn httpstream.Connection, kind string) httpstream.Stream {
	t.Helper()
	stream, err := conn.CreateStream(http.Header{remotecommand.StreamType: {kind}})
	if err != nil {
		t.Fatalf("stream %s: %v", kind, err)
	}
	return stream
}

func read(t testing.TB, r io.Reader) string {
	t.Helper()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// status is the part of metav1.Status that clients look at.
type status struct {
	Status, Reason, Message string
	Details                 struct {
		Causes []struct{ Reason, Message string }
	}
}

// code is the exit code as clients find it.
func (s status) code(t testing.TB) string {
	t.Helper()
	if s.Status == "Success" {
		return "0"
	}
	if s.Reason != "NonZeroExitCode" || len(s.Details.Causes) != 1 || s.Details.Causes[0].Reason != "ExitCode" {
		t.Fatalf("status %+v has no exit code", s)
	}
	return s.Details.Causes[0].Message
}

func parseStatus(t testing.TB, text string) status {
	t.Helper()
	var s status
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		t.Fatalf("status %q: %v", text, err)
	}
	return s
}

// eventually waits for a condition that other goroutines bring about.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%s: not so after 15 s\n%s", what, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// flatGoroutines fails the test if it leaves goroutines behind.
func flatGoroutines(t testing.TB) {
	t.Helper()
	before := runtime.NumGoroutine()
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
	})
}

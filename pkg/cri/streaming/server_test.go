package streaming

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

func get(t testing.TB, method, url string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// rows: D-70, D-71, R-18
func TestTicketsWorkOnce(t *testing.T) {
	s := newServer(t, &fakeRuntime{})
	url := execURL(t, s, true, true, true, false)
	if !strings.HasPrefix(url, "http://127.0.0.1:") {
		t.Errorf("URL %s is not of the loopback", url)
	}
	if token := url[strings.LastIndex(url, "/")+1:]; len(token) < 26 {
		t.Errorf("token %q has less than 128 random bits", token)
	}
	if code := get(t, http.MethodPut, url); code != http.StatusMethodNotAllowed {
		t.Errorf("PUT: %d", code)
	}
	if code := get(t, http.MethodGet, strings.Replace(url, "/exec/", "/attach/", 1)); code != http.StatusNotFound {
		t.Errorf("exec's token used for attach: %d", code)
	}
	if code := get(t, http.MethodGet, url); code != http.StatusBadRequest {
		t.Errorf("first use, without an upgrade: %d", code)
	}
	if code := get(t, http.MethodGet, url); code != http.StatusNotFound {
		t.Errorf("second use: %d", code)
	}
}

// rows: D-71
func TestTicketsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tickets := newTickets()
		serve := func(*session, *http.Request) {}
		var paths []string
		for range maxTickets {
			path, err := tickets.issue("exec", serve)
			if err != nil {
				t.Fatal(err)
			}
			paths = append(paths, path)
		}
		if _, err := tickets.issue("exec", serve); !errdefs.IsResourceExhausted(err) {
			t.Errorf("one too many: %v", err)
		}
		time.Sleep(ticketLife - time.Second)
		if _, ok := tickets.redeem(paths[0]); !ok {
			t.Error("a ticket was not good for its minute")
		}
		time.Sleep(2 * time.Second)
		if _, ok := tickets.redeem(paths[1]); ok {
			t.Error("a ticket was good for more than its minute")
		}
		if n := len(tickets.byPath); n != 0 {
			t.Errorf("%d expired tickets are kept", n)
		}
		if _, err := tickets.issue("exec", serve); err != nil {
			t.Errorf("after they expired: %v", err)
		}
	})
}

// rows: D-70
func TestListenOnLoopbackOnly(t *testing.T) {
	log := logrus.NewEntry(logrus.New())
	for _, address := range []string{"0.0.0.0:0", "[::]:0", ":0"} {
		if s, err := New(Options{Address: address, Log: log}, &fakeRuntime{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", address, err)
			if err == nil {
				s.Close()
			}
		}
	}
	if _, err := New(Options{Address: "localhost:nope", Log: log}, &fakeRuntime{}); err == nil || !strings.Contains(err.Error(), "localhost:nope") {
		t.Errorf("an address that is none: %v", err)
	}
}

// Close ends sessions and waits for them; a later client is turned away.
func TestClose(t *testing.T) {
	flatGoroutines(t)
	started := make(chan struct{}, 2)
	ended := 0
	log := logrus.New()
	log.SetOutput(io.Discard)
	s, err := New(Options{Log: logrus.NewEntry(log)}, &fakeRuntime{
		exec: func(ctx context.Context, _ []string, s sandbox.Streams) (int32, error) {
			started <- struct{}{}
			<-ctx.Done()
			ended++
			return 0, ctx.Err()
		},
		forward: func(ctx context.Context, _ int32, c io.ReadWriteCloser) error {
			started <- struct{}{}
			<-ctx.Done()
			return errors.New("told to end")
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	url := execURL(t, s, false, true, false, false)
	conn := dial(t, url, "v4.channel.k8s.io")
	open(t, conn, "error")
	open(t, conn, "stdout")
	forwardURL, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p"})
	if err != nil {
		t.Fatal(err)
	}
	openPair(t, dial(t, forwardURL, "portforward.k8s.io"), "1", "80")
	<-started
	<-started
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if ended != 1 {
		t.Error("the session did not end before Close returned")
	}
	if _, err := http.Get(url); err == nil {
		t.Error("the server still listens")
	}
}

// With a certificate the URL says https, and sessions end as gently as without.
// rows: D-81
func TestTLS(t *testing.T) {
	certified := httptest.NewUnstartedServer(nil)
	certified.StartTLS()
	t.Cleanup(certified.Close)
	log := logrus.New()
	log.SetOutput(io.Discard)
	s, err := New(Options{Address: "0.0.0.0:0", TLS: &tls.Config{Certificates: certified.TLS.Certificates}, Log: logrus.NewEntry(log)},
		&fakeRuntime{exec: upper(3, nil)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	url := execURL(t, s, true, true, true, false)
	if !strings.HasPrefix(url, "https://") {
		t.Fatalf("URL %s", url)
	}
	conn := dial(t, url, "v4.channel.k8s.io")
	status, stdin, stdout := open(t, conn, "error"), open(t, conn, "stdin"), open(t, conn, "stdout")
	open(t, conn, "stderr")
	io.WriteString(stdin, "hello")
	stdin.Close()
	if out := read(t, stdout); out != "HELLO" {
		t.Errorf("stdout %q", out)
	}
	if code := parseStatus(t, read(t, status)).code(t); code != "3" {
		t.Errorf("exit code %s", code)
	}
}

// The last output arrives at a slow client, though it sent what nobody has read.
func TestCloseOverUnreadInput(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	raw, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var lingering sync.WaitGroup
	c := &conn{Conn: raw, buffered: bufio.NewReader(raw), gone: func() {}, unwatch: func() bool { return true }, sessions: &lingering}
	if _, err := client.Write(make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	// The client reads nothing yet and has little room, so most of it waits on the server's side.
	client.(*net.TCPConn).SetReadBuffer(4 << 10)
	raw.(*net.TCPConn).SetWriteBuffer(200 << 10)
	const size = 100 << 10
	if _, err := c.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, client); n != size || err != nil {
		t.Errorf("%d of %d bytes arrived: %v", n, size, err)
	}
	client.Close()
	lingering.Wait()
}

// A session without traffic ends after its time, over each protocol, and not before.
// rows: D-80
func TestIdleSessionEnds(t *testing.T) {
	const idle = 200 * time.Millisecond
	ended := make(chan error)
	log := logrus.New()
	log.SetOutput(io.Discard)
	s, err := New(Options{IdleTimeout: idle, Log: logrus.NewEntry(log)}, &fakeRuntime{
		attach: func(ctx context.Context, _ sandbox.Streams) error {
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for protocol, connect := range map[string]func(url string){
		"SPDY": func(url string) {
			conn := dial(t, url, "v4.channel.k8s.io")
			open(t, conn, "error")
			open(t, conn, "stdout")
		},
		"WebSocket": func(url string) { dialWebSocket(t, url, "v5.channel.k8s.io") },
	} {
		url, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		connect(url)
		select {
		case <-ended:
		case <-time.After(20 * idle):
			t.Fatalf("%s: the session goes on", protocol)
		}
		if took := time.Since(began); took < idle {
			t.Errorf("%s: the session ended after %v", protocol, took)
		}
	}
}

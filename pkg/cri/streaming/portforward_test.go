package streaming

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

func forwardURL(t testing.TB, s *Server, ports ...int32) string {
	t.Helper()
	url, err := s.PortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "p", Port: ports})
	if err != nil {
		t.Fatal(err)
	}
	return url
}

func openPair(t testing.TB, conn httpstream.Connection, request, port string) (data, errs httpstream.Stream) {
	t.Helper()
	streams := map[string]httpstream.Stream{}
	for _, kind := range []string{portforward.StreamTypeError, portforward.StreamTypeData} {
		header := http.Header{portforward.StreamType: {kind}, portforward.PortHeader: {port}}
		if request != "" {
			header.Set(portforward.PortForwardRequestIDHeader, request)
		}
		stream, err := conn.CreateStream(header)
		if err != nil {
			t.Fatalf("%s stream: %v", kind, err)
		}
		streams[kind] = stream
	}
	// Clients write nothing to the error stream.
	streams[portforward.StreamTypeError].Close()
	return streams[portforward.StreamTypeData], streams[portforward.StreamTypeError]
}

// echo sends back what it got once the client has ended its direction: it needs the half-close both ways.
func echo(_ context.Context, port int32, c io.ReadWriteCloser) error {
	if port == 1 {
		return errors.New("connection refused")
	}
	data, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	fmt.Fprintf(c, "%d:", port)
	c.Write(data)
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

func checkForwarding(t *testing.T, conn httpstream.Connection) {
	first, firstErr := openPair(t, conn, "1", "8080")
	bad, badErr := openPair(t, conn, "2", "1")
	second, secondErr := openPair(t, conn, "", "9090")
	io.WriteString(second, "second")
	second.Close()
	io.WriteString(first, "first")
	if text := read(t, badErr); !strings.Contains(text, "connection refused") {
		t.Errorf("the error of a port without a listener: %q", text)
	}
	if data := read(t, bad); data != "" {
		t.Errorf("data of a port without a listener: %q", data)
	}
	if got := read(t, second); got != "9090:second" {
		t.Errorf("second: %q", got)
	}
	first.Close()
	if got := read(t, first); got != "8080:first" {
		t.Errorf("first: %q", got)
	}
	if a, b := read(t, firstErr), read(t, secondErr); a != "" || b != "" {
		t.Errorf("errors of connections that went well: %q, %q", a, b)
	}
}

// rows: D-74
func TestPortForwardSPDY(t *testing.T) {
	flatGoroutines(t)
	s := newServer(t, &fakeRuntime{forward: echo})
	conn := dial(t, forwardURL(t, s), "portforward.k8s.io")
	checkForwarding(t, conn)
	for _, header := range []http.Header{
		{},
		{"Streamtype": {"data"}},
		{"Streamtype": {"data"}, "Port": {"0"}},
		{"Streamtype": {"data"}, "Port": {"65536"}},
		{"Streamtype": {"data"}, "Port": {"http"}},
		{"Streamtype": {"other"}, "Port": {"80"}},
	} {
		if _, err := conn.CreateStream(header); err == nil {
			t.Errorf("a stream with %v was accepted", header)
		}
	}
	checkForwarding(t, conn)
}

// rows: D-74
func TestPortForwardTunnel(t *testing.T) {
	flatGoroutines(t)
	s := newServer(t, &fakeRuntime{forward: echo})
	ws := dialWebSocket(t, forwardURL(t, s), "SPDY/3.1+portforward.k8s.io")
	ws.PayloadType = websocket.BinaryFrame
	conn, err := spdy.NewClientConnection(ws)
	if err != nil {
		t.Fatal(err)
	}
	checkForwarding(t, conn)
	conn.Close()
}

// rows: D-74
func TestPortForwardWebSocket(t *testing.T) {
	flatGoroutines(t)
	s := newServer(t, &fakeRuntime{forward: func(_ context.Context, port int32, c io.ReadWriteCloser) error {
		line, err := bufio.NewReader(c).ReadString('\n')
		fmt.Fprintf(c, "%d:%s", port, line)
		return errors.Join(err, errors.New("and no more"))
	}})
	ws := dialWebSocket(t, forwardURL(t, s, 80, 81), "v4.channel.k8s.io")
	websocket.Message.Send(ws, []byte("\x00one\n"))
	websocket.Message.Send(ws, []byte("\x02two\n"))
	got := receive(t, ws, false)
	for channel, want := range map[int]string{0: "80:one\n", 2: "81:two\n", 1: "and no more", 3: "and no more"} {
		port := binary.LittleEndian.Uint16([]byte(got[channel]))
		if port != uint16(80+channel/2) || !strings.Contains(got[channel][2:], want) {
			t.Errorf("channel %d: %q", channel, got[channel])
		}
	}
}

// The end of what a pod has to say reaches the client while the client still talks.
// rows: D-82
func TestPortForwardHalfClose(t *testing.T) {
	flatGoroutines(t)
	rest := make(chan string, 1)
	s := newServer(t, &fakeRuntime{forward: func(_ context.Context, _ int32, c io.ReadWriteCloser) error {
		io.WriteString(c, "hello")
		c.(interface{ CloseWrite() error }).CloseWrite()
		data, err := io.ReadAll(c)
		rest <- string(data)
		return err
	}})
	data, errs := openPair(t, dial(t, forwardURL(t, s), "portforward.k8s.io"), "1", "80")
	if got := read(t, data); got != "hello" {
		t.Errorf("client got %q", got)
	}
	io.WriteString(data, "the rest")
	data.Close()
	if got := <-rest; got != "the rest" {
		t.Errorf("pod got %q", got)
	}
	if text := read(t, errs); text != "" {
		t.Error(text)
	}
}

// Both directions at once, much, and exactly.
func TestPortForwardBulk(t *testing.T) {
	flatGoroutines(t)
	const size = 32 << 20
	digests := make(chan [32]byte, 2)
	pour := func(w io.Writer, seed uint64) {
		source := rand.NewChaCha8([32]byte{byte(seed)})
		hash := sha256.New()
		if _, err := io.CopyN(io.MultiWriter(w, hash), source, size); err != nil {
			t.Error(err)
		}
		digests <- [32]byte(hash.Sum(nil))
	}
	received := make(chan [32]byte, 2)
	drain := func(r io.Reader) {
		hash := sha256.New()
		if n, err := io.Copy(hash, r); n != size || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		received <- [32]byte(hash.Sum(nil))
	}
	s := newServer(t, &fakeRuntime{forward: func(_ context.Context, _ int32, c io.ReadWriteCloser) error {
		var both sync.WaitGroup
		both.Go(func() { drain(c) })
		pour(c, 1)
		c.(interface{ CloseWrite() error }).CloseWrite()
		both.Wait()
		return nil
	}})
	data, errs := openPair(t, dial(t, forwardURL(t, s), "portforward.k8s.io"), "1", "80")
	var both sync.WaitGroup
	both.Go(func() { drain(data) })
	both.Go(func() { pour(data, 2); data.Close() })
	both.Wait()
	if text := read(t, errs); text != "" {
		t.Error(text)
	}
	sent, got := [2][32]byte{<-digests, <-digests}, [2][32]byte{<-received, <-received}
	if !(sent == got || bytes.Equal(sent[0][:], got[1][:]) && bytes.Equal(sent[1][:], got[0][:])) {
		t.Error("the bytes that arrived are not those that were sent")
	}
}

// Clients that vanish in the middle leave nothing behind.
func TestPortForwardClientGone(t *testing.T) {
	flatGoroutines(t)
	var started, ended atomic.Int32
	s := newServer(t, &fakeRuntime{forward: func(ctx context.Context, _ int32, c io.ReadWriteCloser) error {
		started.Add(1)
		<-ctx.Done()
		ended.Add(1)
		return ctx.Err()
	}})
	for range 20 {
		conn := dial(t, forwardURL(t, s), "portforward.k8s.io")
		for i := range 5 {
			openPair(t, conn, fmt.Sprint(i), "80")
		}
		if _, err := conn.CreateStream(http.Header{portforward.StreamType: {"error"}, portforward.PortHeader: {"80"}}); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	// A connection whose client was gone at once need not have been begun.
	eventually(t, "all connections have ended", func() bool { return started.Load() > 0 && started.Load() == ended.Load() })
}

package streaming

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"github.com/criserver/criserver/pkg/sandbox"
)

func execURL(t testing.TB, s *Server, stdin, stdout, stderr, tty bool) string {
	t.Helper()
	url, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"cmd"}, Stdin: stdin, Stdout: stdout, Stderr: stderr, Tty: tty})
	if err != nil {
		t.Fatal(err)
	}
	return url
}

// upper is a command that answers in capitals and says on stderr how much it read.
func upper(exit int32, err error) func(context.Context, []string, sandbox.Streams) (int32, error) {
	return func(_ context.Context, _ []string, s sandbox.Streams) (int32, error) {
		data, _ := io.ReadAll(s.In)
		s.Out.Write(bytes.ToUpper(data))
		fmt.Fprintf(s.Err, "%d bytes", len(data))
		return exit, err
	}
}

// rows: D-72, D-77
func TestExecSPDY(t *testing.T) {
	for _, tc := range []struct {
		name, protocol string
		exit           int32
		err            error
		want           string // of the status, as its exit code or its text
	}{
		{"v4 success", "v4.channel.k8s.io", 0, nil, "0"},
		{"v4 exit code", "v4.channel.k8s.io", 3, nil, "3"},
		{"v4 killed", "v4.channel.k8s.io", 137, nil, "137"},
		{"v4 error", "v4.channel.k8s.io", 0, errors.New("no such container"), "Internal error occurred: no such container"},
		{"v3 success", "v3.channel.k8s.io", 0, nil, ""},
		{"v3 exit code", "v3.channel.k8s.io", 3, nil, "command terminated with non-zero exit code: 3"},
		{"v2 error", "v2.channel.k8s.io", 0, errors.New("no such container"), "no such container"},
		{"v1 exit code", "channel.k8s.io", 1, nil, "command terminated with non-zero exit code: 1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			flatGoroutines(t)
			s := newServer(t, &fakeRuntime{exec: upper(tc.exit, tc.err)})
			conn := dial(t, execURL(t, s, true, true, true, false), tc.protocol)
			status := open(t, conn, "error")
			stdin, stdout, stderr := open(t, conn, "stdin"), open(t, conn, "stdout"), open(t, conn, "stderr")
			io.WriteString(stdin, "hello")
			stdin.Close()
			if out, err := read(t, stdout), read(t, stderr); out != "HELLO" || err != "5 bytes" {
				t.Errorf("stdout %q, stderr %q", out, err)
			}
			got := read(t, status)
			if tc.protocol == "v4.channel.k8s.io" {
				if s := parseStatus(t, got); tc.err != nil {
					got = s.Message
				} else {
					got = s.code(t)
				}
			}
			if got != tc.want {
				t.Errorf("status %q, want %q", got, tc.want)
			}
		})
	}
}

// A client that sends more than the command reads gets the command's output and exit code all the same.
func TestExecInputNotRead(t *testing.T) {
	s := newServer(t, &fakeRuntime{exec: func(_ context.Context, _ []string, s sandbox.Streams) (int32, error) {
		io.WriteString(s.Out, "done")
		return 7, nil
	}})
	for range 20 {
		conn := dial(t, execURL(t, s, true, true, false, false), "v4.channel.k8s.io")
		status := open(t, conn, "error")
		stdin, stdout := open(t, conn, "stdin"), open(t, conn, "stdout")
		go func() {
			for chunk := make([]byte, 32<<10); ; {
				if _, err := stdin.Write(chunk); err != nil {
					return
				}
			}
		}()
		if out := read(t, stdout); out != "done" {
			t.Errorf("stdout %q", out)
		}
		if code := parseStatus(t, read(t, status)).code(t); code != "7" {
			t.Errorf("exit code %s", code)
		}
		conn.Close()
	}
}

// Streams that were not asked for are nil, whatever the client opens.
func TestStreamsAsAsked(t *testing.T) {
	flatGoroutines(t)
	got := make(chan sandbox.Streams, 1)
	s := newServer(t, &fakeRuntime{
		exec: func(_ context.Context, _ []string, s sandbox.Streams) (int32, error) { got <- s; return 0, nil },
	})
	conn := dial(t, execURL(t, s, false, true, false, false), "v4.channel.k8s.io")
	open(t, conn, "error")
	for _, kind := range []string{"stdin", "stderr", "resize", "error", "other", ""} {
		if stream, err := conn.CreateStream(http.Header{remotecommand.StreamType: {kind}}); err == nil {
			t.Errorf("stream %q was accepted: %v", kind, stream)
		}
	}
	open(t, conn, "stdout")
	if s := <-got; s.In != nil || s.Err != nil || s.Resize != nil || s.Out == nil || s.TTY {
		t.Errorf("streams %+v", s)
	}
}

// rows: D-76
func TestExecTerminal(t *testing.T) {
	flatGoroutines(t)
	sizes := make(chan sandbox.Size, 10)
	s := newServer(t, &fakeRuntime{exec: func(_ context.Context, _ []string, s sandbox.Streams) (int32, error) {
		if !s.TTY || s.Err != nil {
			t.Errorf("streams %+v", s)
		}
		for size := range s.Resize {
			sizes <- size
		}
		return 0, nil
	}})
	conn := dial(t, execURL(t, s, true, true, false, true), "v4.channel.k8s.io")
	status := open(t, conn, "error")
	open(t, conn, "stdin")
	open(t, conn, "stdout")
	resize := open(t, conn, "resize")
	io.WriteString(resize, `{"Width":80,"Height":24}`)
	if got := <-sizes; got != (sandbox.Size{Width: 80, Height: 24}) {
		t.Errorf("size %v", got)
	}
	// In pieces, without a size, and the next.
	io.WriteString(resize, `{"Width":0,"Height":0}{"Wid`)
	io.WriteString(resize, `th":132,"Height":50}`)
	if got := <-sizes; got != (sandbox.Size{Width: 132, Height: 50}) {
		t.Errorf("size %v", got)
	}
	resize.Close()
	if code := parseStatus(t, read(t, status)).code(t); code != "0" {
		t.Errorf("exit code %s", code)
	}
}

// Sizes that nobody takes are replaced; rubbish and sizes without end stop them, and nothing else.
func TestResizeFlood(t *testing.T) {
	for name, flood := range map[string]string{
		"sizes":      strings.Repeat(`{"Width":80,"Height":24}`, 100_000) + `{"Width":1,"Height":2}`,
		"too large":  `{"Width":4294967296,"Height":-1}`,
		"no JSON":    strings.Repeat("\x00", 1<<20),
		"never ends": `{"Width":"` + strings.Repeat("9", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r, w := io.Pipe()
			sizes := resizes(ctx, r)
			if n, err := io.WriteString(w, flood); err != nil {
				t.Fatalf("blocked or failed after %d bytes: %v", n, err)
			}
			w.Close()
			var last sandbox.Size
			n := 0
			for size := range sizes {
				last = size
				n++
			}
			if name == "sizes" && (last != sandbox.Size{Width: 1, Height: 2} || n > 1000) || name != "sizes" && n != 0 {
				t.Errorf("%d sizes, the last %v", n, last)
			}
		})
	}
}

// The context ends with the client, over each protocol; without stdin, too.
func TestClientGone(t *testing.T) {
	flatGoroutines(t)
	started, ended := make(chan struct{}), make(chan error)
	s := newServer(t, &fakeRuntime{
		attach: func(ctx context.Context, _ sandbox.Streams) error {
			started <- struct{}{}
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		},
	})
	url := func() string {
		url, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdout: true})
		if err != nil {
			t.Fatal(err)
		}
		return url
	}
	t.Run("SPDY", func(t *testing.T) {
		conn := dial(t, url(), "v4.channel.k8s.io")
		open(t, conn, "error")
		open(t, conn, "stdout")
		<-started
		conn.Close()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Run("WebSocket", func(t *testing.T) {
		ws := dialWebSocket(t, url(), "v5.channel.k8s.io")
		<-started
		ws.Close()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Run("SPDY with input that nobody reads", func(t *testing.T) {
		url, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdin: true})
		if err != nil {
			t.Fatal(err)
		}
		conn := dial(t, url, "v4.channel.k8s.io")
		open(t, conn, "error")
		stdin := open(t, conn, "stdin")
		<-started
		for range 10 {
			io.WriteString(stdin, "typed")
		}
		conn.Close()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Run("before its streams", func(t *testing.T) {
		dial(t, url(), "v4.channel.k8s.io").Close()
	})
}

// A client that stops reading keeps its session from ending only for a moment.
func TestClientDoesNotRead(t *testing.T) {
	flatGoroutines(t)
	blocked := make(chan struct{})
	s := newServer(t, &fakeRuntime{attach: func(_ context.Context, s sandbox.Streams) error {
		var written atomic.Int64
		go func() {
			for chunk := make([]byte, 64<<10); ; written.Add(1) {
				if _, err := s.Out.Write(chunk); err != nil {
					close(blocked)
					return
				}
			}
		}()
		// As the shim does, give up on a reader that takes nothing for a while.
		for before := int64(-1); written.Load() != before; time.Sleep(200 * time.Millisecond) {
			before = written.Load()
		}
		return errors.New("too slow")
	}})
	url, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	dialWebSocket(t, url, "v5.channel.k8s.io")
	select {
	case <-blocked:
	case <-time.After(10 * lingerTime):
		t.Error("the session has not ended")
	}
}

func dialWebSocket(t testing.TB, url string, protocols ...string) *websocket.Conn {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(url, "http", "ws", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = protocols
	ws, err := config.DialContext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ws.Close() })
	return ws
}

// receive collects the channels until the end of the session.
func receive(t testing.TB, ws *websocket.Conn, text bool) map[int]string {
	t.Helper()
	got := map[int]string{}
	for {
		var message []byte
		if err := websocket.Message.Receive(ws, &message); err != nil {
			return got
		}
		channel, data := int(message[0]), message[1:]
		if text {
			channel -= '0'
			var err error
			if data, err = base64.StdEncoding.DecodeString(string(data)); err != nil {
				t.Fatal(err)
			}
		}
		got[channel] += string(data)
	}
}

// rows: D-73
func TestExecWebSocket(t *testing.T) {
	five := func(_ context.Context, _ []string, s sandbox.Streams) (int32, error) {
		data := make([]byte, 5)
		io.ReadFull(s.In, data)
		s.Out.Write(bytes.ToUpper(data))
		if _, err := s.In.Read(data); err == io.EOF {
			io.WriteString(s.Err, "end")
		}
		return 3, nil
	}
	for _, protocol := range []string{"v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io", ""} {
		t.Run("protocol "+protocol, func(t *testing.T) {
			flatGoroutines(t)
			exec := upperFive
			if protocol == "v5.channel.k8s.io" {
				exec = five
			}
			s := newServer(t, &fakeRuntime{exec: exec})
			var offer []string
			if protocol != "" {
				offer = []string{"v9.channel.k8s.io", protocol}
			}
			ws := dialWebSocket(t, execURL(t, s, true, true, true, false), offer...)
			text := strings.Contains(protocol, "base64")
			if text {
				websocket.Message.Send(ws, "0"+base64.StdEncoding.EncodeToString([]byte("hello")))
			} else {
				websocket.Message.Send(ws, []byte("\x00hello"))
			}
			if protocol == "v5.channel.k8s.io" {
				websocket.Message.Send(ws, []byte{255, 0})
			}
			got := receive(t, ws, text)
			if got[1] != "HELLO" {
				t.Errorf("stdout %q", got[1])
			}
			if protocol == "v5.channel.k8s.io" && got[2] != "end" {
				t.Errorf("the end of stdin was not seen: stderr %q", got[2])
			}
			if strings.HasPrefix(protocol, "v") {
				if code := parseStatus(t, got[3]).code(t); code != "3" {
					t.Errorf("exit code %s", code)
				}
			} else if got[3] != "command terminated with non-zero exit code: 3" {
				t.Errorf("status %q", got[3])
			}
		})
	}
}

func upperFive(_ context.Context, _ []string, s sandbox.Streams) (int32, error) {
	data := make([]byte, 5)
	io.ReadFull(s.In, data)
	s.Out.Write(bytes.ToUpper(data))
	return 3, nil
}

// An attach without stdin goes on; a channel that was not asked for is read and thrown away.
// rows: D-73
func TestAttachWebSocketWithoutStdin(t *testing.T) {
	flatGoroutines(t)
	more := make(chan struct{})
	s := newServer(t, &fakeRuntime{attach: func(_ context.Context, s sandbox.Streams) error {
		if s.In != nil || s.Err != nil {
			t.Errorf("streams %+v", s)
		}
		<-more
		io.WriteString(s.Out, "still here")
		return nil
	}})
	url, err := s.Attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	ws := dialWebSocket(t, url, "v4.channel.k8s.io")
	for range 100 {
		websocket.Message.Send(ws, []byte("\x00typed"))
		websocket.Message.Send(ws, []byte(`\x04{"Width":80,"Height":24}`))
		websocket.Message.Send(ws, []byte("\x99?"))
	}
	close(more)
	got := receive(t, ws, false)
	if got[1] != "still here" || parseStatus(t, got[3]).Status != "Success" {
		t.Errorf("got %v", got)
	}
}

func TestUnknownProtocols(t *testing.T) {
	s := newServer(t, &fakeRuntime{})
	url := execURL(t, s, false, true, false, false)
	_, resp, err := tryDial(url, "v9.channel.k8s.io")
	if err == nil || resp.StatusCode != http.StatusForbidden || !slices.Contains(resp.Header["X-Accepted-Stream-Protocol-Versions"], "v4.channel.k8s.io") {
		t.Errorf("error %v, response %+v", err, resp)
	}
	config, _ := websocket.NewConfig(strings.Replace(execURL(t, s, false, true, false, false), "http", "ws", 1), "http://localhost")
	config.Protocol = []string{"v9.channel.k8s.io"}
	if _, err := config.DialContext(t.Context()); err == nil {
		t.Error("a WebSocket of an unknown protocol was opened")
	}
}

package streaming

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/criserver/criserver/pkg/sandbox"
)

// channels says which streams the session of an exec or attach has.
type channels struct{ stdin, stdout, stderr, tty bool }

// link is an opened session: the client's ends of its streams, those that were asked for, and the way to say how it ended.
type link struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	resize         io.Reader
	gone           <-chan bool   // closed when the client said goodbye, which some do without hanging up; may be nil
	finish         func(outcome) // says how it ended; ends the streams and the connection
}

// exitError is the exit code of a command that failed.
type exitError int32

func (e exitError) Error() string {
	return fmt.Sprintf("command terminated with non-zero exit code: %d", int32(e))
}

// command serves an exec or an attach: run is connected with the client's streams, and its error becomes the status
// that the client gets at the end.
func (s *Server) command(want channels, run func(context.Context, sandbox.Streams) error) handler {
	return func(w *session, r *http.Request) {
		open := s.openSPDY
		if wsstream.IsWebSocketRequest(r) {
			open = s.openWebSocket
		}
		l, err := open(w, r, want)
		if err != nil {
			s.log.WithError(err).Debug("streaming session was not opened")
			return
		}
		ctx, cancel := context.WithCancel(r.Context())
		go func() {
			select {
			case <-l.gone:
				cancel()
			case <-ctx.Done():
			}
		}()
		err = run(ctx, l.streams(ctx, want))
		cancel()
		if err != nil {
			s.log.WithError(err).Debug("streaming session failed")
		}
		w.last(func() { l.finish(outcome{err}) })
	}
}

// streams hands over what was asked for: a client may have opened less, and its zero streams must be nil interfaces.
func (l *link) streams(ctx context.Context, want channels) sandbox.Streams {
	st := sandbox.Streams{TTY: want.tty}
	if want.stdin {
		st.In = l.stdin
	}
	if want.stdout {
		st.Out = l.stdout
	}
	if want.stderr {
		st.Err = l.stderr
	}
	if want.tty && l.resize != nil {
		st.Resize = resizes(ctx, l.resize)
	}
	return st
}

// maxResize bounds what one size of a terminal may take as JSON.
const maxResize = 1 << 10

// resizes reads the sizes of the client's terminal until its stream or the context ends. A size that nobody has taken
// is replaced by the next, so that a flood of them neither queues nor blocks.
func resizes(ctx context.Context, r io.Reader) <-chan sandbox.Size {
	sizes := make(chan sandbox.Size, 1)
	go func() {
		defer close(sizes)
		limited := &io.LimitedReader{R: r, N: maxResize}
		decoder := json.NewDecoder(limited)
		for {
			var size remotecommand.TerminalSize
			if err := decoder.Decode(&size); err != nil || ctx.Err() != nil {
				// A WebSocket's other channels wait behind one that is not read.
				_, _ = io.Copy(io.Discard, r)
				return
			}
			limited.N = maxResize
			if size.Width == 0 || size.Height == 0 {
				continue // a client without a terminal of its own
			}
			select {
			case <-sizes:
			default:
			}
			sizes <- sandbox.Size(size)
		}
	}()
	return sizes
}

// outcome is how a command ended: as metav1.Status, of which only these fields are used (v4.channel.k8s.io and later), or as
// text (before).
type outcome struct{ err error }

// text is empty for a success.
func (o outcome) text() []byte {
	if o.err == nil {
		return nil
	}
	return []byte(o.err.Error())
}

func (o outcome) status() []byte {
	type cause struct {
		Type    string `json:"reason"` // metav1.StatusCause has this name on the wire
		Message string `json:"message"`
	}
	type details struct {
		Causes []cause `json:"causes"`
	}
	status := struct {
		Metadata struct{} `json:"metadata"`
		Status   string   `json:"status"`
		Message  string   `json:"message,omitempty"`
		Reason   string   `json:"reason,omitempty"`
		Details  *details `json:"details,omitempty"`
		Code     int      `json:"code,omitempty"`
	}{Status: "Success"}
	switch err := o.err.(type) {
	case nil:
	case exitError:
		status.Status, status.Reason, status.Message = "Failure", remotecommand.NonZeroExitCodeReason, err.Error()
		status.Details = &details{[]cause{{remotecommand.ExitCodeCauseType, strconv.Itoa(int(err))}}}
	default:
		status.Status, status.Reason, status.Code = "Failure", "InternalError", http.StatusInternalServerError
		status.Message = "Internal error occurred: " + err.Error()
	}
	data, err := json.Marshal(status)
	if err != nil {
		panic(err) // strings and numbers
	}
	return data
}

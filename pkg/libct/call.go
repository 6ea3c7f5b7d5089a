package libct

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// StartError says why a command could not be executed; its text is for people.
type StartError struct{ Reason string }

func (e *StartError) Error() string { return e.Reason }

// repeatable are the calls that have the same effect when they are made twice, so
// that they are made again if a shim died over them.
var repeatable = map[wire.Method]bool{
	wire.MountRootfs: true, wire.Delete: true, wire.List: true, wire.ReopenLog: true, wire.CloseStdin: true,
}

// call makes a call with a single reply, once the shim is there. If ctx ends
// before the reply, the shim finishes the call all the same.
func (s *Shim) call(ctx context.Context, req *wire.Request, files ...*os.File) (wire.Reply, []*os.File, error) {
	for {
		if err := s.wait(ctx); err != nil {
			return wire.Reply{}, nil, err
		}
		reply, out, err := s.exchange(ctx, req, files...)
		if !errors.Is(err, errHungUp) || !repeatable[req.Method] || ctx.Err() != nil {
			return reply, out, err
		}
	}
}

// wait waits for the shim to be there.
func (s *Shim) wait(ctx context.Context) error {
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("shim is being replaced: %w", ctx.Err())
	}
}

// exchange makes a call with a single reply.
func (s *Shim) exchange(ctx context.Context, req *wire.Request, files ...*os.File) (wire.Reply, []*os.File, error) {
	conn, reply, out, err := s.begin(ctx, req, files...)
	if err != nil {
		return reply, nil, err
	}
	return reply, out, conn.Close()
}

// begin makes a call and returns its first reply, if that is no failure, and the
// connection on which others may follow.
func (s *Shim) begin(ctx context.Context, req *wire.Request, files ...*os.File) (*wire.Conn, wire.Reply, []*os.File, error) {
	conn, err := s.dial(ctx)
	if err != nil {
		return nil, wire.Reply{}, nil, err
	}
	cut := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	var reply wire.Reply
	var out []*os.File
	err = conn.Send(req, files...)
	if err == nil {
		out, err = conn.Recv(&reply)
	}
	switch {
	case !cut() || err != nil && ctx.Err() != nil:
		err = fmt.Errorf("shim: %s: %w", req.Method, ctx.Err())
	case err != nil:
		err = fmt.Errorf("shim: %s: %w (%w): %w", req.Method, errHungUp, err, errdefs.ErrUnavailable)
	default:
		err = failure(&reply)
	}
	if err != nil {
		wire.CloseFiles(out)
		_ = conn.Close()
		return nil, reply, nil, err
	}
	return conn, reply, out, nil
}

// dialPatience is how long a socket is tried on which nobody listens: between the
// death of a shim and the moment when we notice.
const dialPatience = 2 * time.Second

func (s *Shim) dial(ctx context.Context) (*wire.Conn, error) {
	path := filepath.Join(s.o.State, socketName)
	s.mu.Lock()
	patience := time.Duration(0)
	if s.process != nil {
		patience = dialPatience
	}
	s.mu.Unlock()
	for end := time.Now().Add(patience); ; {
		conn, err := wire.Dial(path)
		if err == nil {
			return conn, nil
		}
		if time.Now().After(end) || !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("shim: %w: %w", err, errdefs.ErrUnavailable)
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("shim: %w", ctx.Err())
		}
	}
}

// kinds of failures.
var kinds = map[wire.Code]error{
	wire.CodeNotFound:      errdefs.ErrNotFound,
	wire.CodeState:         errdefs.ErrFailedPrecondition,
	wire.CodeInvalid:       errdefs.ErrInvalidArgument,
	wire.CodeExists:        errdefs.ErrAlreadyExists,
	wire.CodeUnimplemented: errdefs.ErrNotImplemented,
}

// failure is the error of a reply; nil if it is none.
func failure(r *wire.Reply) error {
	switch {
	case r.Code == "":
		return nil
	case r.Code == wire.CodeStart:
		return &StartError{Reason: r.Error}
	}
	kind := kinds[r.Code]
	if kind == nil {
		kind = errdefs.ErrInternal
	}
	return fmt.Errorf("%s: %w", r.Error, kind)
}

// refused tells an error with which the shim answered from one of the way to it.
func refused(err error) bool {
	return err != nil && !errors.Is(err, errdefs.ErrUnavailable) &&
		!errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

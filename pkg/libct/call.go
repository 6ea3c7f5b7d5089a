package libct

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// StartError says why a command could not be executed; its text is for people.
type StartError struct{ Reason string }

func (e *StartError) Error() string { return e.Reason }

// repeatable are the calls that have the same effect when they are made twice, so
// that they are made again if a shim died over them.
var repeatable = map[wire.Method]bool{
	wire.MountRootfs: true, wire.MountImages: true, wire.Delete: true, wire.List: true, wire.ReopenLog: true, wire.CloseStdin: true,
}

// call makes a call with a single reply, once the shim is there. If ctx ends
// before the reply, the shim finishes the call all the same.
func (s *Shim) call(ctx context.Context, req *wire.Request, files ...*os.File) (wire.Reply, []*os.File, error) {
	for {
		conn, reply, out, err := s.open(ctx, req, files...)
		if err == nil {
			return reply, out, conn.Close()
		}
		if !errors.Is(err, errHungUp) || !repeatable[req.Method] || ctx.Err() != nil {
			return reply, nil, err
		}
	}
}

const (
	absentPatience = 20 * time.Second     // for a shim to be there again
	absentInterval = 2 * time.Millisecond // between its death and the moment when lookAfter notices
)

// open begins a call once the shim is there.
func (s *Shim) open(ctx context.Context, req *wire.Request, files ...*os.File) (*wire.Conn, wire.Reply, []*os.File, error) {
	for end := time.Now().Add(absentPatience); ; {
		if err := s.wait(ctx); err != nil {
			return nil, wire.Reply{}, nil, err
		}
		conn, reply, out, err := s.begin(ctx, req, files...)
		if !errors.Is(err, errAbsent) || time.Now().After(end) {
			return conn, reply, out, err
		}
		select {
		case <-time.After(absentInterval):
		case <-ctx.Done():
		}
	}
}

// wait waits for the shim to be there.
func (s *Shim) wait(ctx context.Context) error {
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	select {
	case <-ctx.Done():
		return fmt.Errorf("shim: %w", ctx.Err())
	case <-ready:
		return ctx.Err()
	}
}

// exchange makes a call with a single reply of the shim that is there now.
func (s *Shim) exchange(ctx context.Context, req *wire.Request, files ...*os.File) (wire.Reply, []*os.File, error) {
	conn, reply, out, err := s.begin(ctx, req, files...)
	if err != nil {
		return reply, nil, err
	}
	return reply, out, conn.Close()
}

var (
	errAbsent = errors.New("no shim listens")  // nothing was sent
	errHungUp = errors.New("the shim hung up") // nobody knows how far it came
)

// begin makes a call and returns its first reply, if that is no failure, and the
// connection on which others may follow.
func (s *Shim) begin(ctx context.Context, req *wire.Request, files ...*os.File) (*wire.Conn, wire.Reply, []*os.File, error) {
	conn, err := wire.Dial(filepath.Join(s.o.State, socketName))
	if err != nil {
		return nil, wire.Reply{}, nil, fmt.Errorf("%w: %w: %w", errAbsent, err, errdefs.ErrUnavailable)
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

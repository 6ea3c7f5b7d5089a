package shim

import (
	"errors"
	"fmt"

	"github.com/opencontainers/runc/libcontainer"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// failure is an error with the kind that the daemon is told.
type failure struct {
	code wire.Code
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// failf makes a failure; the format may wrap another error.
func failf(code wire.Code, format string, args ...any) error {
	return &failure{code, fmt.Errorf(format, args...)}
}

// codeOf classifies any error.
func codeOf(err error) wire.Code {
	var f *failure
	switch {
	case errors.As(err, &f):
		return f.code
	case errors.Is(err, libcontainer.ErrNotExist):
		return wire.CodeNotFound
	case errors.Is(err, libcontainer.ErrExist):
		return wire.CodeExists
	case errors.Is(err, libcontainer.ErrInvalidID):
		return wire.CodeInvalid
	case errors.Is(err, libcontainer.ErrNotRunning), errors.Is(err, libcontainer.ErrNotPaused),
		errors.Is(err, libcontainer.ErrPaused), errors.Is(err, libcontainer.ErrRunning):
		return wire.CodeState
	}
	return wire.CodeInternal
}

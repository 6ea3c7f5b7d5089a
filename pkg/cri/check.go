package cri

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	idLength = 64 // hex digits of the ID of a pod or container
	// maxCommand is what execve(2) takes of arguments and environment at the very most, in bytes.
	maxCommand = 6 << 20
	maxSeconds = math.MaxInt64 / int64(time.Second)
)

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// checkID refuses an ID that is missing. One that cannot exist is not found; it is not repeated to the caller.
func checkID(field, id string) error {
	if id == "" {
		return invalid("%s is missing", field)
	}
	if len(id) > idLength {
		return fmt.Errorf("%s has %d characters, an ID has %d: %w", field, len(id), idLength, errdefs.ErrNotFound)
	}
	return nil
}

// checkCommand refuses what no kernel executes.
func checkCommand(cmd []string) error {
	if len(cmd) == 0 || cmd[0] == "" {
		return invalid("cmd is empty: name a program")
	}
	size := 0
	for _, arg := range cmd {
		size += len(arg) + 1
	}
	if size > maxCommand {
		return invalid("cmd has %d bytes, the kernel takes at most %d", size, maxCommand)
	}
	return nil
}

// seconds turns a timeout of a request into a duration; one that is too long for a duration is as long as it can be.
func seconds(field string, n int64) (time.Duration, error) {
	if n < 0 {
		return 0, invalid("%s is %d: it cannot be negative", field, n)
	}
	return time.Duration(min(n, maxSeconds)) * time.Second, nil
}

// checkStreams is the contract of ExecRequest and AttachRequest.
func checkStreams(r interface {
	GetTty() bool
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
}) error {
	if r.GetTty() && r.GetStderr() {
		return invalid("tty and stderr cannot both be true: a terminal has one output")
	}
	if !r.GetStdin() && !r.GetStdout() && !r.GetStderr() {
		return invalid("one of stdin, stdout and stderr must be true")
	}
	return nil
}

// checkImage returns the reference of an image spec.
func (s *Server) checkImage(field string, image *runtimeapi.ImageSpec) (string, error) {
	if image.GetImage() == "" {
		return "", invalid("%s.image is missing", field)
	}
	return image.GetImage(), s.checkHandler(field+".runtime_handler", image.GetRuntimeHandler())
}

// checkHandler refuses the name of a runtime handler that is not configured; there is no fallback.
func (s *Server) checkHandler(field, name string) error {
	for _, h := range s.handlers {
		if h.GetName() == name {
			return nil
		}
	}
	return invalid("%s %.64q is not configured", field, name)
}

// openDirectory opens a directory of the node that a request names by its absolute path. The caller closes it.
func openDirectory(field, name string) (*os.File, error) {
	if name == "" {
		return nil, invalid("%s is missing", field)
	}
	if !filepath.IsAbs(name) {
		return nil, invalid("%s %.128q is not an absolute path", field, name)
	}
	dir, err := os.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, invalid("%s: directory %.128q cannot be opened: %v", field, name, errors.Unwrap(err))
	}
	return dir, nil
}

// checkDirectory refuses what is not a directory.
func checkDirectory(field, name string) error {
	dir, err := openDirectory(field, name)
	if err != nil {
		return err
	}
	return dir.Close()
}

// checkEmptyDirectory refuses what is not a directory without entries.
func checkEmptyDirectory(field, name string) error {
	dir, err := openDirectory(field, name)
	if err != nil {
		return err
	}
	defer dir.Close()
	switch names, err := dir.Readdirnames(1); {
	case len(names) > 0:
		return invalid("%s: directory %.128q is not empty, it has %.128q", field, name, names[0])
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("%s: read directory: %w", field, err)
	}
	return nil
}

// checkNoOptions refuses options: there are none, and "the runtime must reject unsupported or invalid keys"
// (CheckpointPodRequest.options, RestorePodRequest.options).
func checkNoOptions(options map[string]string) error {
	for key := range options {
		return invalid("options has the unknown key %.128q: there are no options", key)
	}
	return nil
}

// checkDeadline refuses a call without a deadline, where the API has it that the caller must set one.
func checkDeadline(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		return invalid("the call has no deadline: set one")
	}
	return nil
}

// checkSize refuses an answer that clients cannot receive, and says what they can do instead.
func checkSize(m proto.Message, items int, twin string) error {
	if size := proto.Size(m); size > maxMessage {
		return fmt.Errorf("%d items take %d bytes, a message takes %d: use a filter or %s: %w", items, size, maxMessage, twin, errdefs.ErrResourceExhausted)
	}
	return nil
}

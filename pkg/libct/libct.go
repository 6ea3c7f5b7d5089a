// Package libct is the daemon's side of the shim: it launches it, connects to
// it, calls it, watches it, and keeps for it the descriptors that have no name.
//
// How to think of it. There is one shim per state directory and it outlives the
// daemon. Open finds it, or starts one, and from then on one goroutine listens to
// it: for the exits of containers, and for its own end. When the shim dies,
// another is started at once; it gets what this package kept for it, per
// container: a pidfd, which still tells the exit status when the process is long
// gone, the terminal's master, and open ends of the FIFOs, so that what stands in
// them stays. Calls wait meanwhile; those that may have been cut in the middle
// give ErrUnavailable, and Delete clears up after them.
//
// Errors are of package errdefs: NotFound, FailedPrecondition (wrong state),
// InvalidArgument, AlreadyExists, Unavailable (no answer from the shim), Internal.
package libct

import (
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// Names below the state directory, which the shim knows too.
const (
	socketName    = "shim.sock"
	pidName       = "shim.pid"
	logName       = "shim.log"
	rootfsName    = "rootfs"
	containerName = "containers"
	imagesSuffix  = ".images" // after a container's ID, beside its root filesystem
)

// Options configure Open.
type Options struct {
	Binary string // path of criserver-shim
	State  string // volatile directory: shim.sock, shim.pid, containers/, rootfs/
	Log    *logrus.Entry
	// OnExit is told of every container's exit, from one goroutine, at least
	// once: an exit is told again after a reconnect.
	OnExit func(id string, e wire.Exit)
	// OnReplace is told, after a shim that died was replaced and the new one
	// has adopted the containers, so that states can be compared with List.
	OnReplace func()
}

// CreateOptions describe a container beside its spec.
type CreateOptions struct {
	Spec          *specs.Spec
	LogPath       string
	Stdin         bool
	SystemdCgroup bool
}

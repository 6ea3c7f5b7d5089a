package sandbox

import (
	"encoding/json"
	"io"
	"net/netip"
	"time"

	"github.com/opencontainers/go-digest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/rootfs"
)

// Pod is a snapshot of a pod. What it points to is never changed.
type Pod struct {
	ID        string
	State     PodState
	Config    *runtimeapi.PodSandboxConfig
	Handler   string
	IPs       []netip.Addr                        // primary first; none with the host's network or once stopped
	CNI       json.RawMessage                     // the CNI result
	NetNS     string                              // path; empty with the host's network
	Overhead  *runtimeapi.LinuxContainerResources // as last set, at first in Config; like Resources
	Resources *runtimeapi.LinuxContainerResources
	InitPid   int // of pid 1 of a shared PID namespace
	CreatedAt time.Time
}

// Container is a snapshot of a container. What it points to is never changed.
type Container struct {
	ID, PodID  string
	State      ContainerState
	Config     *runtimeapi.ContainerConfig
	ImageID    digest.Digest
	ImageRef   string        // repo@digest where known, else the image ID
	Volumes    []VolumeImage // of the mounts whose source is an image, in their order
	User       rootfs.User
	Pid        int
	CreatedAt  time.Time
	StartedAt  time.Time // zero until it happened, like FinishedAt
	FinishedAt time.Time
	ExitCode   int32
	Unknown    bool   // exited, and no one can know how
	Reason     string // Completed, Error, OOMKilled, StartError, Unknown
	Message    string
	LogPath    string                              // absolute; empty without a log
	Resources  *runtimeapi.LinuxContainerResources // as last applied
	StopSignal runtimeapi.Signal                   // that StopContainer sends
}

// VolumeImage is what a mount's image was resolved to.
type VolumeImage struct {
	ID  digest.Digest
	Ref string // repo@digest where known, else the ID
}

// Event says that an object changed; read the object for what it is now.
type Event struct {
	Type      runtimeapi.ContainerEventType
	Pod       string
	Container string // equal to Pod for the pod's own events
	At        time.Time
}

// Size of a terminal in characters.
type Size struct{ Width, Height uint16 }

// Streams are the caller's ends of an interactive session; nil where there is none.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
	TTY      bool
	Resize   <-chan Size
}

// ExecResult is what ExecSync gives.
type ExecResult struct {
	Stdout, Stderr []byte // each cut at 16 MiB
	ExitCode       int32
}

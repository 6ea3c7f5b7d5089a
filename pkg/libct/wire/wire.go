// Package wire is the protocol between the daemon and the shim of the node:
// its messages and their framing. Both ends import it and it imports neither.
//
// A connection on the shim's unix stream socket carries one call: one Request,
// with open files passed beside it (SCM_RIGHTS), answered by one Reply, also
// with files. Three calls go on after their first reply: Exec sends a second
// Reply with the Exit when the process has ended, Attach one when the
// container's output has, and Watch sends a Reply for every exit, those that are
// known already first, until the caller hangs up. Hanging up during an Exec does not end the
// process. A frame is a 4-byte big-endian length and that many bytes of JSON.
//
// Compatibility: fields are only ever added. A method that an older shim lacks
// answers CodeUnimplemented, and the daemon then upgrades the shim in place.
package wire

import (
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Version of the protocol, told in the reply to Hello.
const Version = 1

// MaxFrame is the largest frame in bytes that either end accepts.
const MaxFrame = 16 << 20

// Method names the call.
type Method string

// The calls. Files that go along are named in brackets, in their order.
const (
	Hello       Method = "hello"        // → Version, Build, Pid
	MountRootfs Method = "mount-rootfs" // Rootfs → [root directory]
	MountImages Method = "mount-images" // Images; after MountRootfs
	Create      Method = "create"       // Create → Pid [pidfd, then stdin writer or pty master if there is one]; no Pid: Start will tell why
	Start       Method = "start"
	Exec        Method = "exec"   // Exec [stdin, stdout, stderr, those that Exec names] → Pid [pidfd, then pty master if there is one], then Exit
	Signal      Method = "signal" // Signal, All or Pid
	Attach      Method = "attach" // Attach [stdout, stderr, those that Attach names] → a reply, and a second one when the container's output has ended
	CloseStdin  Method = "close-stdin"
	ReopenLog   Method = "reopen-log"
	Update      Method = "update"
	Pause       Method = "pause"
	Resume      Method = "resume"
	Delete      Method = "delete"
	StartInit   Method = "start-init" // Init [namespaces to join, in order] → Pid [pidfd]
	List        Method = "list"       // → Containers
	Watch       Method = "watch"      // → Exited, again and again
	Spares      Method = "spares"     // → Pid [as Create's; none if the container has ended]
	Adopt       Method = "adopt"      // Adopt [pidfd, stdin writer or pty master, those that Adopt names]
	Upgrade     Method = "upgrade"    // the shim executes Path in its place and keeps all it has
	Shutdown    Method = "shutdown"   // refused with CodeState while a container is alive
)

// Request is what the daemon sends. Only the fields that the method needs are set.
type Request struct {
	Method    Method                `json:"method"`
	ID        string                `json:"id,omitempty"` // container, or pod for StartInit
	Rootfs    *Rootfs               `json:"rootfs,omitempty"`
	Images    []Image               `json:"images,omitempty"`
	Create    *CreateArgs           `json:"create,omitempty"`
	Exec      *ExecArgs             `json:"exec,omitempty"`
	Attach    *AttachArgs           `json:"attach,omitempty"`
	Init      *InitArgs             `json:"init,omitempty"`
	Adopt     *AdoptArgs            `json:"adopt,omitempty"`
	Signal    int                   `json:"signal,omitempty"`
	All       bool                  `json:"all,omitempty"` // Signal: every process of the container's cgroup
	Pid       int                   `json:"pid,omitempty"` // Signal: the exec with this pid and all its descendants that can be found
	Resources *specs.LinuxResources `json:"resources,omitempty"`
	Path      string                `json:"path,omitempty"`
	Cgroup    string                `json:"cgroup,omitempty"` // Delete: linux.cgroupsPath of a container of which nothing else is known
}

// Reply is what the shim answers.
type Reply struct {
	Code       Code             `json:"code,omitempty"` // empty: it worked
	Error      string           `json:"error,omitempty"`
	Version    int              `json:"version,omitempty"`
	Build      string           `json:"build,omitempty"`
	Pid        int              `json:"pid,omitempty"`
	Exit       *Exit            `json:"exit,omitempty"`
	Exited     string           `json:"exited,omitempty"` // ID of the container that Exit is of
	Containers []ContainerState `json:"containers,omitempty"`
	Stages     []Stage          `json:"stages,omitempty"` // of Create
}

// Stage is a piece of the work on a call, and when it was done, in nanoseconds since 1970.
type Stage struct {
	Name string `json:"name"`
	From int64  `json:"from"`
	To   int64  `json:"to"`
}

// Code classifies a failure; the client turns it into an error of package errdefs.
type Code string

// The kinds of failure.
const (
	CodeNotFound      Code = "not-found"
	CodeState         Code = "wrong-state"
	CodeInvalid       Code = "invalid"
	CodeExists        Code = "exists"
	CodeUnimplemented Code = "unimplemented"
	CodeStart         Code = "start" // the command cannot be executed
	CodeInternal      Code = "internal"
)

// Rootfs says how to mount a root filesystem at <state>/rootfs/<ID>.
type Rootfs struct {
	Lower    []string               `json:"lower"`           // overlay's lower directories, topmost first
	Upper    string                 `json:"upper,omitempty"` // empty, like Work: a read-only view
	Work     string                 `json:"work,omitempty"`
	UIDMap   []specs.LinuxIDMapping `json:"uid_map,omitempty"` // with a user namespace: lower directories are mounted idmapped
	GIDMap   []specs.LinuxIDMapping `json:"gid_map,omitempty"`
	Volatile bool                   `json:"volatile,omitempty"` // overlay's "volatile": no sync of the upper directory
}

// Image says how to mount an image, or a directory of it, as a volume at
// <state>/rootfs/<ID>.images/<its place in the list>, where the container's mounts
// find it. It is read-only.
type Image struct {
	Layers  Rootfs `json:"layers"` // without Upper and Work
	SubPath string `json:"sub_path,omitempty"`
}

// CreateArgs describe a container beside the OCI spec, which the daemon has
// written to <state>/containers/<ID>/config.json.
type CreateArgs struct {
	LogPath       string `json:"log_path,omitempty"` // absolute; empty: output is read and dropped (attach still sees it)
	Terminal      bool   `json:"terminal,omitempty"` // as in the spec's process
	Stdin         bool   `json:"stdin,omitempty"`    // a FIFO that stays open until CloseStdin; else /dev/null
	SystemdCgroup bool   `json:"systemd_cgroup,omitempty"`
}

// ExecArgs describe a further process in a container.
type ExecArgs struct {
	Process *specs.Process `json:"process"`
	Stdin   bool           `json:"stdin,omitempty"` // which of the files come along (none with a terminal)
	Stdout  bool           `json:"stdout,omitempty"`
	Stderr  bool           `json:"stderr,omitempty"`
}

// Streams is the number of files that come along.
func (a *ExecArgs) Streams() (n int) {
	for _, due := range []bool{a.Stdin, a.Stdout, a.Stderr} {
		if due {
			n++
		}
	}
	return n
}

// AttachArgs say which of the write ends come along.
type AttachArgs struct {
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
}

// InitArgs describe pid 1 of a pod that shares its PID namespace.
type InitArgs struct {
	Join        []specs.LinuxNamespaceType `json:"join,omitempty"`        // kinds of the namespaces that come along; user first
	CgroupPath  string                     `json:"cgroup_path,omitempty"` // as in the spec's linux.cgroupsPath; empty: the shim's own
	Systemd     bool                       `json:"systemd,omitempty"`
	OOMScoreAdj *int                       `json:"oom_score_adj,omitempty"`
	UID         *uint32                    `json:"uid,omitempty"` // nil, like GID: root of the user namespace joined, else 65534
	GID         *uint32                    `json:"gid,omitempty"`
	Groups      []uint32                   `json:"groups,omitempty"` // supplemental ones
	Filter      []byte                     `json:"filter,omitempty"` // compiled seccomp profile; empty: unconfined
}

// AdoptArgs say which of the spare descriptors come along.
type AdoptArgs struct {
	Pidfd bool `json:"pidfd,omitempty"`
	Stdio bool `json:"stdio,omitempty"` // the stdin writer or, with a terminal, the pty master
}

// Exit says how a process ended. A container's exit is also written to
// <state>/containers/<ID>/exit.json before it is told, so that it outlives a
// daemon that is down.
type Exit struct {
	Code      int       `json:"code"`             // 0-255; 128+n for signal n; 255 if Unknown
	Signal    int       `json:"signal,omitempty"` // that ended it
	OOMKilled bool      `json:"oom_killed,omitempty"`
	Unknown   bool      `json:"unknown,omitempty"` // no one can know any more
	At        time.Time `json:"at"`
	StartErr  string    `json:"start_err,omitempty"` // why the command could not be executed
}

// ContainerState is the shim's view of one container, or of the init of a pod.
type ContainerState struct {
	ID      string `json:"id"`
	Pid     int    `json:"pid,omitempty"`
	Started bool   `json:"started,omitempty"` // the user's command was executed
	Paused  bool   `json:"paused,omitempty"`
	Init    bool   `json:"init,omitempty"` // a pod's init
	Exit    *Exit  `json:"exit,omitempty"`
}

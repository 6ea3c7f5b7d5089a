package sandbox

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/rootfs"
)

// message is a CRI message in a record: as JSON on disk, encoded once.
type message[M proto.Message] struct {
	M   M
	raw json.RawMessage
}

func newMessage[M proto.Message](m M) (message[M], error) {
	raw, err := protojson.Marshal(m)
	return message[M]{m, raw}, err
}

// MarshalJSON returns what newMessage encoded or UnmarshalJSON read.
func (m message[M]) MarshalJSON() ([]byte, error) {
	if m.raw == nil {
		return []byte("null"), nil
	}
	return m.raw, nil
}

// UnmarshalJSON reads the message; fields of a newer CRI are passed over.
func (m *message[M]) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	m.raw = append(json.RawMessage(nil), b...)
	m.M = m.M.ProtoReflect().Type().New().Interface().(M)
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(b, m.M)
}

// podRecord is what is kept of a pod.
type podRecord struct {
	State     PodState
	Boot      string // boot ID under which it was created
	Config    message[*runtimeapi.PodSandboxConfig]
	Overhead  message[*runtimeapi.LinuxContainerResources] `json:",omitzero"` // since the last UpdatePod, like Resources
	Resources message[*runtimeapi.LinuxContainerResources] `json:",omitzero"`
	Handler   string                                       `json:",omitempty"`
	IPs       []netip.Addr                                 `json:",omitempty"`
	CNI       json.RawMessage                              `json:",omitempty"`
	InitPid   int                                          `json:",omitempty"`
	CreatedAt time.Time
}

// containerRecord is what is kept of a container.
type containerRecord struct {
	State      ContainerState
	PodID      string
	Boot       string
	Config     message[*runtimeapi.ContainerConfig]
	ImageID    digest.Digest
	ImageRef   string
	Volumes    []VolumeImage `json:",omitempty"`
	User       rootfs.User
	Pid        int `json:",omitempty"`
	CreatedAt  time.Time
	StartedAt  time.Time `json:",omitzero"`
	FinishedAt time.Time `json:",omitzero"`
	ExitCode   int32     `json:",omitempty"`
	Unknown    bool      `json:",omitempty"`
	Reason     string    `json:",omitempty"`
	Message    string    `json:",omitempty"`
	LogPath    string    `json:",omitempty"`
	StopSignal runtimeapi.Signal
	Resources  message[*runtimeapi.LinuxContainerResources]
}

func decode(raw json.RawMessage, rec any) error {
	if err := json.Unmarshal(raw, rec); err != nil {
		return fmt.Errorf("it is not a record of this version: %w", err)
	}
	return nil
}

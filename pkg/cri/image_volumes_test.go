package cri

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/sandbox"
)

// The kubelet finds what it looks for at the beginning, with the code that the cause has.
// rows: D-52
func TestImageVolumeError(t *testing.T) {
	for cause, code := range map[error]codes.Code{
		errdefs.ErrNotFound: codes.NotFound, errdefs.ErrInvalidArgument: codes.InvalidArgument, fmt.Errorf("disk"): codes.Unknown,
	} {
		err := toStatus(fmt.Errorf("create container c: %w", &spec.ImageVolumeError{Err: fmt.Errorf("mounts[0]: %w", cause)}))
		if want := "ImageVolumeMountFailed: create container c: mounts[0]: " + cause.Error(); status.Code(err) != code || status.Convert(err).Message() != want {
			t.Errorf("%v, want %v %s", err, code, want)
		}
	}
}

// rows: M-15, M-17
func TestImageVolumesInStatus(t *testing.T) {
	image := func(sub string) *runtimeapi.Mount {
		return &runtimeapi.Mount{ContainerPath: "/" + sub, ImageSubPath: sub, Image: &runtimeapi.ImageSpec{Image: "name", UserSpecifiedImage: "name"}}
	}
	config := &runtimeapi.ContainerConfig{Mounts: []*runtimeapi.Mount{image("a"), {ContainerPath: "/host", HostPath: "/host"}, image("b")}}
	c := sandbox.Container{Config: config, Volumes: []sandbox.VolumeImage{{ID: "sha256:a", Ref: "repo@sha256:1"}, {ID: "sha256:b", Ref: "sha256:b"}}}
	got := mounts(c)
	for i, want := range map[int][2]string{0: {"sha256:a", "repo@sha256:1"}, 2: {"sha256:b", "sha256:b"}} {
		if m := got[i]; m.Image.Image != want[0] || m.Image.ImageRef != want[1] || m.Image.UserSpecifiedImage != "name" || m.ImageSubPath != config.Mounts[i].ImageSubPath {
			t.Errorf("mount %d: %v", i, m)
		}
	}
	if got[1].Image != nil || config.Mounts[0].Image.Image != "name" {
		t.Errorf("mounts %v, of the request %v", got, config.Mounts)
	}
}

func TestUpdateIsForLinux(t *testing.T) {
	e := newEdge(t)
	_, err := e.runtime.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id("e"),
		Linux: &runtimeapi.LinuxContainerResources{CpuShares: 5}, Windows: &runtimeapi.WindowsContainerResources{CpuShares: 5}})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "windows") {
		t.Errorf("resources of Windows: %v", err)
	}
}

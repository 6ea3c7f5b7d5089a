package cri

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/sandbox"
)

// containerState: what is being removed has exited. UNKNOWN is for a state that this table does not have; an exit
// whose code cannot be known is EXITED with the reason Unknown, as the kubelet would kill an UNKNOWN container again.
func containerState(s sandbox.ContainerState) runtimeapi.ContainerState {
	switch s {
	case sandbox.ContainerCreating, sandbox.ContainerCreated:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case sandbox.ContainerRunning:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case sandbox.ContainerExited, sandbox.ContainerRemoving:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

func containerItem(c sandbox.Container) *runtimeapi.Container {
	return &runtimeapi.Container{
		Id:           c.ID,
		PodSandboxId: c.PodID,
		Metadata:     c.Config.GetMetadata(),
		Image:        c.Config.GetImage(),
		ImageRef:     c.ImageRef,
		State:        containerState(c.State),
		CreatedAt:    nanos(c.CreatedAt),
		Labels:       c.Config.GetLabels(),
		Annotations:  c.Config.GetAnnotations(),
		ImageId:      string(c.ImageID),
	}
}

func (s *Server) containerStatus(c sandbox.Container) *runtimeapi.ContainerStatus {
	status := &runtimeapi.ContainerStatus{
		Id:          c.ID,
		Metadata:    c.Config.GetMetadata(),
		State:       containerState(c.State),
		CreatedAt:   nanos(c.CreatedAt),
		StartedAt:   nanos(c.StartedAt),
		FinishedAt:  nanos(c.FinishedAt),
		ExitCode:    c.ExitCode,
		Image:       s.namedImage(c),
		ImageRef:    c.ImageRef,
		Reason:      c.Reason,
		Message:     c.Message,
		Labels:      c.Config.GetLabels(),
		Annotations: c.Config.GetAnnotations(),
		Mounts:      mounts(c),
		LogPath:     c.LogPath,
		Resources:   &runtimeapi.ContainerResources{Linux: c.Resources},
		ImageId:     string(c.ImageID),
		User: &runtimeapi.ContainerUser{Linux: &runtimeapi.LinuxContainerUser{
			Uid: int64(c.User.UID), Gid: int64(c.User.GID),
		}},
		StopSignal: c.StopSignal,
	}
	for _, gid := range c.User.Groups {
		status.User.Linux.SupplementalGroups = append(status.User.Linux.SupplementalGroups, int64(gid))
	}
	return status
}

// mounts are those of the request. Of an image they have its ID, by which the kubelet knows that it is in use, and its
// digest (ImageSpec.image_ref).
func mounts(c sandbox.Container) []*runtimeapi.Mount {
	out := slices.Clone(c.Config.GetMounts())
	volumes := c.Volumes
	for i, m := range out {
		if !spec.IsImage(m) || len(volumes) == 0 {
			continue
		}
		out[i] = proto.CloneOf(m)
		out[i].Image.Image, out[i].Image.ImageRef = string(volumes[0].ID), volumes[0].Ref
		volumes = volumes[1:]
	}
	return out
}

// namedImage is the image spec of the request. People see it in the pod's status, so where the request has the image's
// ID (as the kubelet's have) it is replaced by what the user wrote, or else by a tag of the image.
func (s *Server) namedImage(c sandbox.Container) *runtimeapi.ImageSpec {
	asked := c.Config.GetImage()
	_, hex, _ := strings.Cut(string(c.ImageID), ":")
	if name := asked.GetImage(); name != string(c.ImageID) && name != hex {
		return asked
	}
	name := asked.GetUserSpecifiedImage()
	if name == "" {
		image, err := s.images.Image(string(c.ImageID))
		if err != nil || len(image.Tags) == 0 {
			return asked
		}
		name = image.Tags[0]
	}
	return &runtimeapi.ImageSpec{
		Image: name, UserSpecifiedImage: asked.GetUserSpecifiedImage(), Annotations: asked.GetAnnotations(),
		RuntimeHandler: asked.GetRuntimeHandler(), ImageRef: asked.GetImageRef(),
	}
}

// containerStatuses are those of one pod.
func (s *Server) containerStatuses(pod string) []*runtimeapi.ContainerStatus {
	return selected(s.sandboxes.Containers(), func(c sandbox.Container) bool { return c.PodID == pod }, s.containerStatus)
}

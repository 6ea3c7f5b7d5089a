package sandbox

import (
	"context"
	"fmt"
	"path"

	"github.com/opencontainers/go-digest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// An image that is a volume is mounted where the root filesystem is: in the mount namespace of the container's creation
// and nowhere else. So the containers that have it share its layers, the host's mount table does not show it, and
// nothing has to be unmounted.

// volumeImages finds the images of the mounts.
func (m *Manager) volumeImages(cfg *runtimeapi.ContainerConfig) ([]VolumeImage, error) {
	var out []VolumeImage
	for i, mount := range cfg.GetMounts() {
		if !spec.IsImage(mount) {
			continue
		}
		img, err := m.o.Images.Image(mount.GetImage().GetImage())
		if err != nil {
			return nil, &spec.ImageVolumeError{Err: fmt.Errorf("mounts[%d].image.image: %w", i, err)}
		}
		v := VolumeImage{ID: img.ID, Ref: img.ID.String()}
		if len(img.Digests) > 0 {
			v.Ref = img.Digests[0]
		}
		out = append(out, v)
	}
	return out, nil
}

// images are all that the container needs to be kept.
func (r *containerRecord) images() []digest.Digest {
	ids := []digest.Digest{r.ImageID}
	for _, v := range r.Volumes {
		ids = append(ids, v.ID)
	}
	return ids
}

// use takes an image into use for the container.
func (b *containerBuild) use(ctx context.Context, id digest.Digest) (layers []string, err error) {
	if layers, err = b.m.o.Images.Use(ctx, id); err != nil {
		return nil, err
	}
	b.c.mu.Lock()
	defer b.c.mu.Unlock()
	b.c.uses = append(b.c.uses, id)
	return layers, nil
}

// mountImages mounts the images that are volumes.
func (b *containerBuild) mountImages(ctx context.Context) error {
	images := b.c.snapshot().Volumes
	if len(images) == 0 {
		return nil
	}
	var mounts []wire.Image
	for _, m := range b.cfg.GetMounts() {
		if !spec.IsImage(m) {
			continue
		}
		n := len(mounts)
		layers, err := b.use(ctx, images[n].ID)
		if err != nil {
			return &spec.ImageVolumeError{Err: err}
		}
		image := wire.Image{Layers: wire.Rootfs{Lower: layers}, SubPath: m.GetImageSubPath()}
		image.Layers.UIDMap, image.Layers.GIDMap = spec.Mappings(b.pod.Config)
		mounts = append(mounts, image)
		b.volumes[path.Clean(m.GetContainerPath())] = b.m.shim.ImagePath(b.c.id, n)
	}
	if err := b.m.shim.MountImages(ctx, b.c.id, mounts); err != nil {
		return &spec.ImageVolumeError{Err: err}
	}
	return nil
}

// VolumeUser returns a container that has the image mounted as a volume, "" for none. One that has exited has no mounts.
func (m *Manager) VolumeUser(id digest.Digest) string {
	for _, c := range m.allContainers() {
		s := c.snapshot()
		if s.State == ContainerExited || s.State == ContainerRemoving {
			continue
		}
		for _, v := range s.Volumes {
			if v.ID == id {
				return c.id
			}
		}
	}
	return ""
}

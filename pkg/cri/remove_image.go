package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemoveImage removes the image that any of its names means, with all its names. An image that is gone is removed; one
// that a container has mounted as a volume is not. What containers have as their root filesystem may be removed: its
// layers stay as long as they do.
func (s *Server) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref, err := s.checkImage("image", r.GetImage())
	if err != nil {
		return nil, err
	}
	if image, err := s.images.Image(ref); err == nil {
		if user := s.sandboxes.VolumeUser(image.ID); user != "" {
			return nil, fmt.Errorf("image %s is mounted as a volume of container %s: stop that first: %w", image.ID, user, errdefs.ErrFailedPrecondition)
		}
	}
	if err := ignoreNotFound(s.images.Remove(ctx, ref)); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

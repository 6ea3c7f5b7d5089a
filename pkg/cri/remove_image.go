package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RemoveImage removes the image that any of its names means, with all its names. An image that is gone is removed.
func (s *Server) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref, err := s.checkImage("image", r.GetImage())
	if err == nil {
		err = s.images.Remove(ctx, ref)
	}
	if err := ignoreNotFound(err); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

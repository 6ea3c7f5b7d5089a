package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageFsInfo is what images take on disk, and what the writable layers of containers do (KEP-4191): the kubelet's
// eviction asks for both.
func (s *Server) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	images, err := s.images.FSUsage(ctx)
	if err != nil {
		return nil, err
	}
	containers, err := s.sandboxes.FSUsage(ctx)
	if err != nil {
		return nil, err
	}
	if images.Device == containers.Device {
		// The kubelet takes two mountpoints for two filesystems: one filesystem is told as one, in both lists.
		images.Bytes, images.Inodes = images.Bytes+containers.Bytes, images.Inodes+containers.Inodes
		containers = images
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{filesystem(images)},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{filesystem(containers)},
	}, nil
}

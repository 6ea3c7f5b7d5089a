package cri

import (
	"context"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/imagesvc"
)

// ListImages lists all images, or the one that the filter names.
func (s *Server) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.matchingImages(r.GetFilter())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ListImagesResponse{Images: selected(images, all, imageItem)}
	return resp, checkSize(resp, len(resp.GetImages()), "StreamImages")
}

// StreamImages is ListImages in pieces.
func (s *Server) StreamImages(r *runtimeapi.StreamImagesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	images, err := s.matchingImages(r.GetFilter())
	if err != nil {
		return err
	}
	return sendChunks(images, all, imageItem, func(items []*runtimeapi.Image) error {
		return stream.Send(&runtimeapi.StreamImagesResponse{Images: items})
	})
}

// matchingImages: a filter that names nothing selects all.
func (s *Server) matchingImages(f *runtimeapi.ImageFilter) ([]imagesvc.Image, error) {
	ref := f.GetImage().GetImage()
	if ref == "" {
		return s.images.Images(), nil
	}
	image, err := s.images.Image(ref)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []imagesvc.Image{image}, nil
}

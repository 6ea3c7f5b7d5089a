package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/imagesvc"
	"github.com/criserver/criserver/pkg/telemetry"
)

// PullImage brings an image and returns its ID, which every other RPC knows the image by.
func (s *Server) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref, err := s.checkImage("image", r.GetImage())
	if err != nil {
		return nil, err
	}
	if pod := r.GetSandboxConfig().GetMetadata(); pod != nil {
		telemetry.About(ctx, telemetry.Subject{Pod: pod.GetNamespace() + "/" + pod.GetName()})
	}
	auth := r.GetAuth()
	image, err := s.images.Pull(ctx, ref, imagesvc.Auth{
		Username:      auth.GetUsername(),
		Password:      auth.GetPassword(),
		Auth:          auth.GetAuth(),
		IdentityToken: auth.GetIdentityToken(),
		RegistryToken: auth.GetRegistryToken(),
		ServerAddress: auth.GetServerAddress(),
	})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: string(image.ID)}, nil
}

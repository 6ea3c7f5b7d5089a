package cri

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageStatus finds an image by tag, digest or ID. That there is none is an answer without an image, not an error.
func (s *Server) ImageStatus(_ context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	ref, err := s.checkImage("image", r.GetImage())
	if err != nil {
		return nil, err
	}
	image, err := s.images.Image(ref)
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: imageItem(image)}
	if r.GetVerbose() {
		// crictl inspecti and people look for imageSpec.
		info, err := json.Marshal(map[string]any{"chainID": image.ChainID, "imageSpec": image.Config})
		if err != nil {
			return nil, fmt.Errorf("image %s as JSON: %w", image.ID, err)
		}
		resp.Info = map[string]string{"info": string(info)}
	}
	return resp, nil
}

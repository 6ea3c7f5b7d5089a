package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// kubeletVersion must be this for any kubelet to start (k8s.io/kubernetes pkg/kubelet/kuberuntime).
	kubeletVersion = "0.1.0"
	runtimeName    = "criserver" // the scheme of container IDs in a pod's status
	apiVersion     = "v1"
)

// Version is also how the kubelet finds out whether the runtime is alive.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version: kubeletVersion, RuntimeName: runtimeName, RuntimeVersion: s.options.Version, RuntimeApiVersion: apiVersion,
	}, nil
}

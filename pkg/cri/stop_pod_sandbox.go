package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StopPodSandbox kills what runs in the pod and takes its network away. It may be called again, and for a pod that is gone.
func (s *Server) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	err := checkID("pod_sandbox_id", r.GetPodSandboxId())
	if err == nil {
		err = s.sandboxes.StopPod(ctx, r.GetPodSandboxId())
	}
	if err := ignoreNotFound(err); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxForwardPorts bounds the ports of one request; only the older WebSocket protocol looks at them.
const maxForwardPorts = 128

// PortForward returns the URL at which ports on the loopback of a pod's network can be reached.
func (s *Server) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	pod, err := s.ready(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if n := len(r.GetPort()); n > maxForwardPorts {
		return nil, invalid("port has %d entries, at most %d are forwarded at once", n, maxForwardPorts)
	}
	for i, port := range r.GetPort() {
		if port < 1 || port > 65535 {
			return nil, invalid("port[%d] is %d: want 1 to 65535", i, port)
		}
	}
	r.PodSandboxId = pod.ID
	url, err := s.streaming.PortForward(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}

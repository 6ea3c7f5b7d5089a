package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Exec returns the URL at which a command can be run with the caller's streams. What can be known to be wrong is said
// here, where the caller still gets an error with a code.
func (s *Server) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	container, err := s.running("container_id", r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := checkCommand(r.GetCmd()); err != nil {
		return nil, err
	}
	if err := checkStreams(r); err != nil {
		return nil, err
	}
	r.ContainerId = container.ID
	url, err := s.streaming.Exec(r)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

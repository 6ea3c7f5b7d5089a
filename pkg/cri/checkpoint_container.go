package cri

import (
	"context"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckpointContainer judges the request and is not served: it needs CRIU.
func (s *Server) CheckpointContainer(_ context.Context, r *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	if _, err := seconds("timeout", r.GetTimeout()); err != nil {
		return nil, err
	}
	if err := checkNewFile("location", r.GetLocation()); err != nil {
		return nil, err
	}
	if _, err := s.running("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	return nil, unimplemented("containers cannot be checkpointed: this runtime does not use CRIU")
}

// checkNewFile wants the absolute path of a file, in a directory that exists.
func checkNewFile(field, name string) error {
	switch {
	case name == "":
		return invalid("%s is missing", field)
	case !filepath.IsAbs(name):
		return invalid("%s %.128q is not an absolute path", field, name)
	case strings.HasSuffix(name, "/"):
		return invalid("%s %.128q names no file", field, name)
	}
	return checkDirectory(field, filepath.Dir(name))
}

package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxOutput is what fits in the answer of ExecSync beside its frame, in bytes.
const maxOutput = maxMessage - 1<<10

// ExecSync runs a command to its end. Its exit code is part of the answer; an error says that it did not run, or was
// killed after timeout seconds (DeadlineExceeded; 0 is no limit).
func (s *Server) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if err := checkID("container_id", r.GetContainerId()); err != nil {
		return nil, err
	}
	if err := checkCommand(r.GetCmd()); err != nil {
		return nil, err
	}
	timeout, err := seconds("timeout", r.GetTimeout())
	if err != nil {
		return nil, err
	}
	result, err := s.sandboxes.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), timeout)
	if err != nil {
		return nil, err
	}
	stdout, stderr := fit(result.Stdout, result.Stderr, maxOutput)
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: result.ExitCode}, nil
}

// fit cuts two outputs to a size that both share: what one does not need of its half is the other's.
func fit(a, b []byte, size int) ([]byte, []byte) {
	keepA := min(len(a), max(size/2, size-len(b)))
	keepB := min(len(b), size-keepA)
	return a[:keepA], b[:keepB]
}

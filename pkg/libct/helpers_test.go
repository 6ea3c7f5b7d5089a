package libct

import (
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func memory(limit int64) *specs.LinuxMemory { return &specs.LinuxMemory{Limit: &limit} }

// resources names only what is not 0.
func resources(limit int64, shares uint64) *specs.LinuxResources {
	r := &specs.LinuxResources{CPU: &specs.LinuxCPU{}}
	if limit != 0 {
		r.Memory = memory(limit)
	}
	if shares != 0 {
		r.CPU.Shares = &shares
	}
	return r
}

func itoa(n int) string { return strconv.Itoa(n) }

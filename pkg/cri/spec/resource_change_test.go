package spec

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestResourceChange(t *testing.T) {
	const mib = 1 << 20
	type res = runtimeapi.LinuxContainerResources
	for _, tc := range []struct {
		name        string
		old, change *res
		limit, swap int64 // 0: not set
		err         string
	}{
		{"limit alone, without swap", &res{MemoryLimitInBytes: 200 * mib}, &res{MemoryLimitInBytes: 400 * mib}, 400 * mib, 400 * mib, ""},
		{"limit alone keeps the swap", &res{MemoryLimitInBytes: 200 * mib, MemorySwapLimitInBytes: 500 * mib}, &res{MemoryLimitInBytes: 400 * mib}, 400 * mib, 500 * mib, ""},
		{"swap alone keeps the limit", &res{MemoryLimitInBytes: 200 * mib}, &res{MemorySwapLimitInBytes: 300 * mib}, 200 * mib, 300 * mib, ""},
		{"swap below the limit", &res{MemoryLimitInBytes: 200 * mib}, &res{MemorySwapLimitInBytes: 100 * mib}, 0, 0, "memory_swap_limit_in_bytes"},
		{"limit above the swap", &res{MemoryLimitInBytes: 200 * mib, MemorySwapLimitInBytes: 300 * mib}, &res{MemoryLimitInBytes: 400 * mib}, 0, 0, "memory_swap_limit_in_bytes"},
		{"swap without any limit", &res{}, &res{MemorySwapLimitInBytes: 100 * mib}, 0, 0, "memory_limit_in_bytes"},
		{"of nothing", nil, &res{MemoryLimitInBytes: 100 * mib}, 100 * mib, 100 * mib, ""},
		{"not of memory", &res{MemoryLimitInBytes: 200 * mib}, &res{CpuShares: 5}, 0, 0, ""},
		{"a bad value", &res{}, &res{CpuShares: -5}, 0, 0, "cpu_shares"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := Host{CgroupV2: true, SwapAccounting: true, Controllers: map[string]bool{"memory": true, "cpu": true}}
			out, err := ResourceChange(tc.old, tc.change, h)
			if tc.err != "" {
				if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want one of %s", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tc.limit == 0 {
				if out.Memory != nil {
					t.Errorf("memory %+v", out.Memory)
				}
				return
			}
			m := out.Memory
			if *m.Limit != tc.limit || *m.Swap != tc.swap || m.CheckBeforeUpdate == nil || !*m.CheckBeforeUpdate {
				t.Errorf("limit %d, swap %d, check %v", *m.Limit, *m.Swap, m.CheckBeforeUpdate)
			}
		})
	}
}

package sandbox

import (
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestMergeResources(t *testing.T) {
	page := func(size string, limit uint64) *runtimeapi.HugepageLimit {
		return &runtimeapi.HugepageLimit{PageSize: size, Limit: limit}
	}
	old := &runtimeapi.LinuxContainerResources{
		CpuShares: 512, MemoryLimitInBytes: 1 << 20, OomScoreAdj: 900, CpusetCpus: "0",
		HugepageLimits: []*runtimeapi.HugepageLimit{page("2MB", 1), page("1GB", 2)},
		Unified:        map[string]string{"memory.high": "1", "memory.min": "2"},
	}
	kept := proto.CloneOf(old)
	change := &runtimeapi.LinuxContainerResources{
		MemoryLimitInBytes: 2 << 20, CpuQuota: 1000, OomScoreAdj: 500,
		HugepageLimits: []*runtimeapi.HugepageLimit{page("2MB", 0)},
		Unified:        map[string]string{"memory.high": "max"},
	}
	want := &runtimeapi.LinuxContainerResources{
		CpuShares: 512, MemoryLimitInBytes: 2 << 20, CpuQuota: 1000, OomScoreAdj: 900, CpusetCpus: "0",
		HugepageLimits: []*runtimeapi.HugepageLimit{page("1GB", 2), page("2MB", 0)},
		Unified:        map[string]string{"memory.high": "max", "memory.min": "2"},
	}
	if got := mergeResources(old, change); !proto.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if !proto.Equal(old, kept) {
		t.Error("the old resources were changed")
	}
	if got := mergeResources(nil, change).GetCpuQuota(); got != 1000 {
		t.Errorf("of nothing: quota %d", got)
	}
}

package blackbox

import (
	"context"
	"os"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// withHandler runs a pod of a runtime handler. The node has two: one that allows annotations and sets ulimits, one like the default.
func withHandler(t *testing.T, handler string, annotations map[string]string, tweaks ...func(*runtimeapi.PodSandboxConfig)) (*pod, error) {
	t.Helper()
	leavesNothing(t)
	p := &pod{t: t, node: n, ctx: context.Background(), config: podConfig("handler", t.TempDir())}
	p.config.Annotations = annotations
	for _, tweak := range tweaks {
		tweak(p.config)
	}
	r, err := n.Runtimes.RunPodSandbox(p.ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	if err != nil {
		return nil, err
	}
	p.id = r.PodSandboxId
	t.Cleanup(p.remove)
	return p, nil
}

// rows
func TestHandlersInStatus(t *testing.T) {
	ours(t)
	r, err := n.Runtimes.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range r.RuntimeHandlers {
		names = append(names, h.Name)
		// What is promised here is tried by TestRecursiveReadOnly and TestUserNamespace.
		equal(t, h.Name+": recursive read-only mounts", h.GetFeatures().GetRecursiveReadOnlyMounts(), true)
		equal(t, h.Name+": user namespaces", h.GetFeatures().GetUserNamespaces(), true)
	}
	if want := []string{"", "plain", "special"}; !slices.Equal(names, want) {
		t.Errorf("handlers %q, want %q", names, want)
	}
}

// rows: K-23, S-22, T-06, GAP-08, P-038, D-188, S-16
func TestHandlerUlimits(t *testing.T) {
	ours(t)
	const show = "echo $(ulimit -Sn) $(ulimit -Hn) $(ulimit -Hc)"
	ask := map[string]string{"criserver.github.io/ulimits": "nofile=300:400", "ulimits.criserver.github.io/one": "nofile=70"}
	named := func(name string) containerTweak {
		return func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = name }
	}
	special, err := withHandler(t, "special", ask)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "by the annotation of the pod", special.says(sh(show)), "300 400 0\n")
	one := special.start(asleep(), named("one"))
	equal(t, "by that of the container", one.sh(show), "70 70 0")
	equal(t, "handler in the status", special.status().RuntimeHandler, "special")

	quiet, err := withHandler(t, "special", nil)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "by the handler", quiet.says(sh(show)), "500 600 0\n")

	node, err := withHandler(t, "plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := withHandler(t, "plain", ask)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "where annotations are not allowed", plain.says(sh(show)), node.says(sh(show)))
}

// rows: S-22
func TestHandlerRefuses(t *testing.T) {
	ours(t)
	_, err := withHandler(t, "nosuch", nil)
	refused(t, err, codes.InvalidArgument, "runtime_handler", "nosuch")
	_, err = withHandler(t, "special", map[string]string{"criserver.github.io/ulimits": "everything"})
	refused(t, err, codes.InvalidArgument, "annotations", "criserver.github.io/ulimits", "everything")
}

// A container may make cgroups where the host has cgroup v2 and the pod asked for it; cgroup v1 cannot do it safely.
// rows: C-26, GAP-15
func TestWritableCgroups(t *testing.T) {
	ours(t)
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	v2 := err == nil
	p, err := withHandler(t, "special", map[string]string{"criserver.github.io/writable-cgroups": "true"})
	if !v2 {
		refused(t, err, codes.InvalidArgument, "annotations", "cgroup v2")
	} else if err != nil {
		t.Fatal(err)
	} else {
		p.start(asleep()).sh("mkdir /sys/fs/cgroup/own && rmdir /sys/fs/cgroup/own")
	}
	p, err = withHandler(t, "special", nil)
	if err != nil {
		t.Fatal(err)
	}
	where := map[bool]string{true: "/sys/fs/cgroup", false: "/sys/fs/cgroup/memory"}[v2]
	equal(t, "without asking", p.start(asleep()).sh("mkdir "+where+"/own 2>/dev/null && echo made || echo refused"), "refused")
}

// Resources of which one cannot be had are all left as they were, also those that were never set.
// rows: R-15
func TestFailedUpdateTakesAllBack(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(asleep())
	before, status := c.sh(limits), c.status().GetResources().String()
	_, err := n.Runtimes.UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id,
		Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuQuota: 20000, CpuPeriod: 50000, CpusetCpus: "4000"}})
	if err == nil {
		t.Fatal("processor 4000 was given")
	}
	equal(t, "limits", c.sh(limits), before)
	equal(t, "status", c.status().GetResources().String(), status)
}

// Memory and swap bound one another; each can be changed alone.
// rows: L-04, P-062
func TestUpdateSwap(t *testing.T) {
	ours(t)
	const file = "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"
	if _, err := os.Stat(file); err != nil {
		t.Skip("the limits of cgroup v2 are tested with the spec")
	}
	p := newPod(t)
	c := p.start(asleep(), resources(func(r *runtimeapi.LinuxContainerResources) { r.MemoryLimitInBytes = 64 << 20 }))
	update := func(r *runtimeapi.LinuxContainerResources) error {
		_, err := n.Runtimes.UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: r})
		return err
	}
	const show = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes " + file
	if err := update(&runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 128 << 20}); err != nil {
		t.Fatal(err)
	}
	equal(t, "swap alone", c.sh(show), "67108864\n134217728")
	if err := update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}); err != nil {
		t.Fatal(err)
	}
	equal(t, "memory alone", c.sh(show), "100663296\n134217728")
	refused(t, update(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 256 << 20}), codes.InvalidArgument, "memory_swap_limit_in_bytes")
	r := c.status().GetResources().GetLinux()
	equal(t, "memory in the status", r.GetMemoryLimitInBytes(), 96<<20)
	equal(t, "swap in the status", r.GetMemorySwapLimitInBytes(), 128<<20)
}

package blackbox

import (
	"context"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/images/oci"
	"github.com/criserver/criserver/test/node"
)

// mayBeEmpty are the fields of answers that no runtime could fill here, and why. Every other one must be filled.
var mayBeEmpty = map[string]string{
	`\.windows$`: "this is Linux",
	`^Status\..*\.conditions\[\]\.(reason|message)$`:  "all conditions hold, and there is nothing to explain: see TestNetworkIsNotReady",
	`\.options\.target_id$`:                           "a pod has no target: see TestPodsThatCannotBe",
	`(?i)\.[ug]id(s|mappings)\[\]\.container_id$`:     "users are mapped from root on",
	`\.hugepage_limits\[\]\.limit$`:                   "a limit beside 0 needs the hugetlb controller",
	`\.metrics\[\]\.timestamp$`:                       "0 says that a metric was read for this answer",
	`^(ListImages|ImageStatus)\..*spec\.image_ref$`:   "it is the digest of a volume",
	`^(ListImages|ImageStatus)\..*spec\.user_spec`:    "no user speaks in these calls",
	`^(ListImages|ImageStatus)\..*spec\.runtime_hand`: "one image serves all handlers",
}

// answers are the fields of the answers that were seen, and whether one of them was not zero.
type answers map[string]bool

func (a answers) add(name string, m proto.Message) { a.walk(name, m.ProtoReflect()) }

func (a answers) walk(path string, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := path + "." + string(f.Name())
		has := m.Has(f)
		a[name] = a[name] || has
		switch {
		case !has || f.IsMap() || f.Kind() != protoreflect.MessageKind || strings.HasSuffix(string(f.Message().Name()), "Value") || f.Message().Name() == "PsiData":
			// What is measured may be 0: that it is there is enough.
		case f.IsList():
			for j := range m.Get(f).List().Len() {
				a.walk(name+"[]", m.Get(f).List().Get(j).Message())
			}
		default:
			a.walk(name, m.Get(f).Message())
		}
	}
}

// check fails for each field that was always zero and has no excuse, and for an excuse that is not needed.
func (a answers) check(t *testing.T) {
	t.Helper()
	used := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if a[name] {
			continue
		}
		excused := false
		for pattern := range mayBeEmpty {
			if regexp.MustCompile(pattern).MatchString(name) {
				used[pattern], excused = true, true
			}
		}
		if !excused {
			t.Errorf("%s is empty in every answer", name)
		}
	}
	for pattern, because := range mayBeEmpty {
		if !used[pattern] {
			t.Errorf("%s may be empty because %s, and is not", pattern, because)
		}
	}
}

// Every field of every answer is filled, by pods that are as rich as pods can be: one that runs, with users, devices,
// mounts and limits, and one with namespaces of the node whose container cannot start.
// rows: GAP-27, GAP-07, GAP-11, A-12, A-20
func TestEveryFieldOfEveryAnswer(t *testing.T) {
	ours(t)
	a := answers{}
	events := watchEvents(t)
	limitPods(t)
	rich, c := richPod(t)
	poor := poorPod(t)
	a.node(t)
	a.images(t)
	for _, p := range []*pod{rich, poor} {
		a.pod(p)
	}
	a.stats(rich, c)
	a.metrics(t)
	poor.remove()
	for e := range events {
		a.add("ContainerEvent", e)
		if e.ContainerId == poor.id && e.ContainerEventType == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
			break
		}
	}
	a.check(t)
}

// watchEvents sends what happens from now on, until the test ends.
func watchEvents(t *testing.T) <-chan *runtimeapi.ContainerEventResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	stream, err := n.Runtimes.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err == nil {
		_, err = stream.Header() // from then on nothing is missed
	}
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan *runtimeapi.ContainerEventResponse, 100)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(events)
		for {
			e, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case events <- e:
			case <-ctx.Done():
				return
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return events
}

// limitPods limits the memory of all pods together, as the kubelet does with the cgroup of each.
func limitPods(t *testing.T) {
	t.Helper()
	for file, none := range map[string]string{
		filepath.Join("/sys/fs/cgroup/memory", node.CgroupParent(), "memory.limit_in_bytes"): "-1",
		filepath.Join("/sys/fs/cgroup", node.CgroupParent(), "memory.max"):                   "max",
	} {
		if os.WriteFile(file, []byte("1G"), 0) != nil {
			continue // the other version of cgroups has it
		}
		t.Cleanup(func() {
			if err := os.WriteFile(file, []byte(none), 0); err != nil {
				t.Error(err)
			}
		})
		return
	}
	t.Fatal("the memory of the pods cannot be limited")
}

func richPod(t *testing.T) (*pod, *container) {
	t.Helper()
	pull(t, volumeImage)
	t.Cleanup(func() { removeImage(t, volumeImage) })
	un := users(300000)
	share, own := inNamespaces(func(o *namespaces) { o.UsernsOptions = un })
	p, err := withHandler(t, "special", map[string]string{"example.org/note": "kept"}, share, func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Attempt = 1 })
	if err != nil {
		t.Fatal(err)
	}
	dir, volume := t.TempDir(), imageAt("/image", volumeImage, "dir")
	volume.Image.UserSpecifiedImage, volume.Image.RuntimeHandler = volumeImage, "special"
	volume.Image.Annotations = map[string]string{"example.org/image": "kept"}
	c := p.start(own, hungry(20),
		mounts(volume, &runtimeapi.Mount{
			ContainerPath: "/m", HostPath: dir, Readonly: true, RecursiveReadOnly: true, SelinuxRelabel: true,
			MountOptions: []string{"noexec"}, UidMappings: un.Uids, GidMappings: un.Gids,
		}, &runtimeapi.Mount{ContainerPath: "/slave", HostPath: dir, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}),
		resources(func(r *runtimeapi.LinuxContainerResources) {
			r.CpuPeriod, r.CpuQuota, r.CpuShares, r.CpusetCpus, r.CpusetMems = 100000, 50000, 512, "0", "0"
			r.MemoryLimitInBytes, r.MemorySwapLimitInBytes, r.OomScoreAdj = 200<<20, 300<<20, 500
			r.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "2MB"}}
			r.Unified = map[string]string{"memory.high": "max"}
		}),
		security(func(s *securityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 2000}, []int64{3000}
		}),
		func(c *runtimeapi.ContainerConfig) {
			c.Metadata.Attempt = 2
			c.Annotations = map[string]string{"example.org/note": "kept"}
			c.Image.UserSpecifiedImage, c.Image.RuntimeHandler = busybox, "special"
			c.Image.Annotations = map[string]string{"example.org/image": "kept"}
			c.Image.ImageRef = busybox
			c.StopSignal = runtimeapi.Signal_SIGNAL_SIGUSR1
		})
	c.hasLogged("full")
	return p, c
}

// poorPod has a container that could not start, and is stopped.
func poorPod(t *testing.T) *pod {
	t.Helper()
	share, own := inNamespaces(func(o *namespaces) {
		o.Network, o.Ipc, o.Pid, o.UsernsOptions = modeNode, modeNode, modeNode, &runtimeapi.UserNamespace{Mode: modeNode}
	})
	p := newPod(t, share)
	c := p.create(own, func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such/program"} })
	if err := c.start(); err == nil {
		t.Fatal("it started")
	}
	if _, err := n.Runtimes.StopPodSandbox(p.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	return p
}

// got is an answer, which must not be an error.
func got[R proto.Message](t *testing.T) func(R, error) R {
	return func(r R, err error) R {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

func (a answers) node(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	a.add("Version", got[*runtimeapi.VersionResponse](t)(n.Runtimes.Version(ctx, &runtimeapi.VersionRequest{})))
	a.add("Status", got[*runtimeapi.StatusResponse](t)(n.Runtimes.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})))
	a.add("RuntimeConfig", got[*runtimeapi.RuntimeConfigResponse](t)(n.Runtimes.RuntimeConfig(ctx, &runtimeapi.RuntimeConfigRequest{})))
	a.add("ImageFsInfo", got[*runtimeapi.ImageFsInfoResponse](t)(n.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})))
}

func (a answers) images(t *testing.T) {
	t.Helper()
	defer pinned(t, busybox)()
	refs := imagesWithUsers(t)
	a.add("ListImages", got[*runtimeapi.ListImagesResponse](t)(n.Images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})))
	for _, ref := range append(refs, busybox) {
		a.add("ImageStatus", got[*runtimeapi.ImageStatusResponse](t)(n.Images.ImageStatus(t.Context(),
			&runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Verbose: true})))
	}
}

// imagesWithUsers have a user by number and by name, and annotations.
func imagesWithUsers(t *testing.T) (refs []string) {
	t.Helper()
	addr := ownRegistry(t, func(l *oci.Layout) {
		for _, user := range []string{"1000", "somebody"} {
			l.Tag("x/"+user+":1", l.Image(oci.Image{Config: ocispec.ImageConfig{User: user}, Annotations: map[string]string{"example.org/by": user}}))
		}
	}, func(h http.Handler) http.Handler { return h })
	for _, user := range []string{"1000", "somebody"} {
		ref := addr + "/" + user + ":1"
		pull(t, ref)
		t.Cleanup(func() { removeImage(t, ref) })
		refs = append(refs, ref)
	}
	return refs
}

// pinned has the daemon pin an image until the function is called that it returns.
func pinned(t *testing.T, ref string) (unpin func()) {
	t.Helper()
	good, err := os.ReadFile(n.Config())
	if err != nil {
		t.Fatal(err)
	}
	reload := func(text string, want bool) {
		if err := os.WriteFile(n.Config(), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := n.Signal(unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "the image is pinned as asked", func() (bool, string) { return imageStatus(t, ref).GetPinned() == want, "" })
	}
	reload(strings.Replace(string(good), "[image]\n", "[image]\npinned = [\""+ref+"\"]\n", 1), true)
	return func() { reload(string(good), false) }
}

func (a answers) pod(p *pod) {
	p.t.Helper()
	a.add("PodSandboxStatus", got[*runtimeapi.PodSandboxStatusResponse](p.t)(n.Runtimes.PodSandboxStatus(p.ctx,
		&runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})))
	a.add("ListPodSandbox", got[*runtimeapi.ListPodSandboxResponse](p.t)(n.Runtimes.ListPodSandbox(p.ctx, &runtimeapi.ListPodSandboxRequest{})))
	list := got[*runtimeapi.ListContainersResponse](p.t)(n.Runtimes.ListContainers(p.ctx, &runtimeapi.ListContainersRequest{}))
	a.add("ListContainers", list)
	for _, c := range list.Containers {
		a.add("ContainerStatus", got[*runtimeapi.ContainerStatusResponse](p.t)(n.Runtimes.ContainerStatus(p.ctx,
			&runtimeapi.ContainerStatusRequest{ContainerId: c.Id, Verbose: true})))
	}
}

// stats waits for the rate of CPU time, which takes two looks.
func (a answers) stats(p *pod, c *container) {
	t := p.t
	t.Helper()
	eventually(t, 10*time.Second, "a rate of the CPU time", func() (bool, string) {
		s := got[*runtimeapi.PodSandboxStatsResponse](t)(n.Runtimes.PodSandboxStats(p.ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id}))
		l := s.GetStats().GetLinux()
		return l.GetCpu().GetUsageNanoCores() != nil && l.GetContainers()[0].GetCpu().GetUsageNanoCores() != nil, s.String()
	})
	a.add("PodSandboxStats", got[*runtimeapi.PodSandboxStatsResponse](t)(n.Runtimes.PodSandboxStats(p.ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})))
	a.add("ListPodSandboxStats", got[*runtimeapi.ListPodSandboxStatsResponse](t)(n.Runtimes.ListPodSandboxStats(p.ctx, &runtimeapi.ListPodSandboxStatsRequest{})))
	a.add("ContainerStats", got[*runtimeapi.ContainerStatsResponse](t)(n.Runtimes.ContainerStats(p.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: c.id})))
	a.add("ListContainerStats", got[*runtimeapi.ListContainerStatsResponse](t)(n.Runtimes.ListContainerStats(p.ctx, &runtimeapi.ListContainerStatsRequest{})))
}

func (a answers) metrics(t *testing.T) {
	t.Helper()
	a.add("ListMetricDescriptors", got[*runtimeapi.ListMetricDescriptorsResponse](t)(n.Runtimes.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})))
	a.add("ListPodSandboxMetrics", got[*runtimeapi.ListPodSandboxMetricsResponse](t)(n.Runtimes.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})))
}

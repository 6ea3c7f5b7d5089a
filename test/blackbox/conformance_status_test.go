package blackbox

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

var fullID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// details are the parts of a verbose answer's key `info`.
func details(t *testing.T, info map[string]string) map[string]any {
	t.Helper()
	var d map[string]any
	if err := json.Unmarshal([]byte(info["info"]), &d); err != nil {
		t.Fatalf("info %q: %v", info, err)
	}
	return d
}

// dig follows keys into details; nil is where there is nothing.
func dig(v any, keys ...string) any {
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

// All that a pod was asked to be comes back, and what became of it.
// rows: R-05, S-14, S-15, T-01, T-02, T-03, T-04, T-05, T-06, T-07, T-08, T-09, GAP-26, GAP-27, X-22, P-034, D-15, SS-01
func TestPodStatus(t *testing.T) {
	ours(t)
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Metadata.Attempt = 3
		c.Labels = map[string]string{"io.kubernetes.pod.name": "x", "empty": "", "Ünicode": "välue"}
		c.Annotations = map[string]string{"example.org/json": `{"a": ["b"]}`, "lines": "one\ntwo"}
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		c.Linux.SecurityContext.NamespaceOptions.Ipc = runtimeapi.NamespaceMode_NODE
	})
	c := p.start(asleep())
	p.create(asleep())
	began := time.Now()
	r, err := n.Runtimes.PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	s := r.Status
	if !fullID.MatchString(s.Id) || s.Id != p.id {
		t.Errorf("ID %q", s.Id)
	}
	listed := p.list(&runtimeapi.PodSandboxFilter{Id: p.id})[0]
	for where, got := range map[string]*runtimeapi.PodSandboxConfig{
		"status": {Metadata: s.Metadata, Labels: s.Labels, Annotations: s.Annotations},
		"list":   {Metadata: listed.Metadata, Labels: listed.Labels, Annotations: listed.Annotations},
	} {
		want := &runtimeapi.PodSandboxConfig{Metadata: p.config.Metadata, Labels: p.config.Labels, Annotations: p.config.Annotations}
		if !proto.Equal(got, want) {
			t.Errorf("%s: %v, want %v", where, got, want)
		}
	}
	if got, want := s.GetLinux().GetNamespaces().GetOptions(), p.config.Linux.SecurityContext.NamespaceOptions; !proto.Equal(got, want) {
		t.Errorf("namespaces %v, want %v", got, want)
	}
	equal(t, "handler in status and list", s.RuntimeHandler+listed.RuntimeHandler, "")
	equal(t, "created_at in the list", listed.CreatedAt, s.CreatedAt)
	equal(t, "statuses of containers", len(r.ContainersStatuses), 2)
	for _, cs := range r.ContainersStatuses {
		want := runtimeapi.ContainerState_CONTAINER_CREATED
		if cs.Id == c.id {
			want = runtimeapi.ContainerState_CONTAINER_RUNNING
		}
		equal(t, "state of a container", cs.State, want)
	}
	if at := time.Unix(0, r.Timestamp); at.Before(began) || at.After(time.Now()) {
		t.Errorf("the statuses are of %v", at)
	}
	d := details(t, r.Info)
	if pid, _ := dig(d, "pid").(float64); pid == 0 {
		t.Errorf("no pid in the details: %v", d)
	}
	plain, err := n.Runtimes.PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil || plain.Info != nil {
		t.Errorf("details without asking: %v %v", plain.GetInfo(), err)
	}
	created := s.CreatedAt
	restart(t, n, (*node.Node).Kill)
	equal(t, "created_at after a restart", p.status().CreatedAt, created)
	if _, err := n.Runtimes.StopPodSandbox(p.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	s = p.status()
	equal(t, "state", s.State, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
	equal(t, "address after the stop", s.GetNetwork().GetIp(), "")
}

// The same for a container.
// rows: R-14, K-02, K-03, K-10, T-05, T-13, T-14, T-15, T-17, T-19, T-20, T-21, T-23, T-24, T-25, D-15, D-120, IM-03, P-012, P-022, P-034a, P-060a, C-12, GAP-27
func TestContainerStatus(t *testing.T) {
	ours(t)
	p := newPod(t)
	dir := t.TempDir()
	im := imageStatus(t, busybox)
	asked := []*runtimeapi.Mount{
		{ContainerPath: "/one", HostPath: dir, Readonly: true, RecursiveReadOnly: true},
		{ContainerPath: "/two", HostPath: dir, MountOptions: []string{"noexec"}},
	}
	c := p.create(asleep(), mounts(asked...), func(c *runtimeapi.ContainerConfig) {
		c.Metadata.Attempt = 4
		c.Labels = map[string]string{"empty": "", "io.kubernetes.container.name": "x"}
		c.Annotations = map[string]string{"example.org/json": `{"a": ["b"]}`}
		c.Image = &runtimeapi.ImageSpec{Image: im.Id, UserSpecifiedImage: "what.the/user:wrote"}
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 2000}
		c.Linux.SecurityContext.SupplementalGroups = []int64{3000}
	})
	s := c.status()
	equal(t, "started before the start", s.StartedAt, 0)
	created := s.CreatedAt
	if created == 0 || !fullID.MatchString(s.Id) {
		t.Errorf("created at %d, ID %q", created, s.Id)
	}
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	r, err := n.Runtimes.ContainerStatus(p.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	s = r.Status
	if s.CreatedAt != created || s.StartedAt < created || s.FinishedAt != 0 {
		t.Errorf("times of a running container: %d %d %d, created at %d", s.CreatedAt, s.StartedAt, s.FinishedAt, created)
	}
	want := &runtimeapi.ContainerConfig{Metadata: c.config.Metadata, Labels: c.config.Labels, Annotations: c.config.Annotations}
	if got := (&runtimeapi.ContainerConfig{Metadata: s.Metadata, Labels: s.Labels, Annotations: s.Annotations}); !proto.Equal(got, want) {
		t.Errorf("status %v, want %v", got, want)
	}
	equal(t, "image, as the user wrote it", s.Image.UserSpecifiedImage, "what.the/user:wrote")
	equal(t, "image_id", s.ImageId, im.Id)
	equal(t, "image_ref is a digest of the repository", slices.Contains(im.RepoDigests, s.ImageRef), true)
	equal(t, "log_path", s.LogPath, c.logPath())
	equal(t, "stop signal", s.StopSignal, runtimeapi.Signal_SIGNAL_SIGTERM)
	user := s.GetUser().GetLinux()
	if user.GetUid() != 1000 || user.GetGid() != 2000 || !slices.Equal(user.GetSupplementalGroups(), []int64{2000, 3000}) {
		t.Errorf("user %v", user)
	}
	if len(s.Mounts) != len(asked) {
		t.Fatalf("mounts %v", s.Mounts)
	}
	for i, m := range asked {
		if !proto.Equal(s.Mounts[i], m) {
			t.Errorf("mount %v, want %v", s.Mounts[i], m)
		}
	}
	listed := p.containers(&runtimeapi.ContainerFilter{Id: c.id})[0]
	if got := (&runtimeapi.ContainerConfig{Metadata: listed.Metadata, Labels: listed.Labels, Annotations: listed.Annotations}); !proto.Equal(got, want) {
		t.Errorf("list %v, want %v", got, want)
	}
	equal(t, "image in the list", listed.GetImage().GetImage(), im.Id)
	equal(t, "image_ref in the list is the same image", imageStatus(t, listed.ImageRef).GetId(), im.Id)
	equal(t, "image_id in the list", listed.ImageId, im.Id)
	equal(t, "pod in the list", listed.PodSandboxId, p.id)
	d := details(t, r.Info)
	args, _ := dig(d, "runtimeSpec", "process", "args").([]any)
	if pid, _ := dig(d, "pid").(float64); pid == 0 || len(args) != 3 || args[0] != "/bin/sh" {
		t.Errorf("details: pid %v, args %v", dig(d, "pid"), args)
	}
	c.sh("true")
	r, err = n.Runtimes.ContainerStatus(p.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	again, _ := dig(details(t, r.Info), "runtimeSpec", "process", "args").([]any)
	equal(t, "args after an exec", len(again), len(args))
	c.stop(0)
	s = c.endsWith(137, "Error")
	if s.CreatedAt != created || s.FinishedAt < s.StartedAt {
		t.Errorf("times in the end: %d %d %d", s.CreatedAt, s.StartedAt, s.FinishedAt)
	}
}

// A container may be made of any name that its image has; its status names the image and the digest.
// rows: K-02, D-205, P-112, P-113, P-113a, P-114a, P-148
func TestImageNamesOfContainers(t *testing.T) {
	ours(t)
	p := newPod(t)
	im := imageStatus(t, busybox)
	var all []*container
	for _, ref := range []string{im.Id, busybox, im.RepoDigests[0]} {
		c := p.start(image(ref), asleep())
		s := c.status()
		equal(t, "image_id", s.ImageId, im.Id)
		equal(t, "image_ref", s.ImageRef, im.RepoDigests[0])
		equal(t, "image", imageStatus(t, s.Image.Image).GetId(), im.Id)
		all = append(all, c)
	}
	restart(t, n, (*node.Node).Kill)
	for _, c := range all {
		equal(t, "image_ref after a restart", c.status().ImageRef, im.RepoDigests[0])
	}
}

// Stop signals of the request reach the container, and the status has them.
// rows: K-16, T-24, P-023, P-024, D-33, P-021
func TestStopSignalOfTheRequest(t *testing.T) {
	p := newPod(t)
	for _, c := range []struct {
		signal runtimeapi.Signal
		trap   string
	}{{runtimeapi.Signal_SIGNAL_SIGINT, "INT"}, {runtimeapi.Signal_SIGNAL_SIGUSR1, "USR1"}, {runtimeapi.Signal_SIGNAL_SIGHUP, "HUP"}, {runtimeapi.Signal_SIGNAL_SIGRTMIN, "RTMIN"}} {
		t.Run(c.trap, func(t *testing.T) {
			p := p.in(t)
			ran := p.start(sh("trap 'exit 9' "+c.trap+"; echo ready; sleep 1000 & wait"), func(cfg *runtimeapi.ContainerConfig) { cfg.StopSignal = c.signal })
			ran.hasLogged("ready")
			equal(t, "stop signal in the status", ran.status().StopSignal, c.signal)
			ran.stop(20)
			ran.endsWith(9, "Error")
		})
	}
	// A process that does nothing about SIGTERM ends by it, unless it is process 1 of a namespace.
	host := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	})
	plain := host.start(sh("exec sleep 1000"), security(func(s *securityContext) { s.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD }))
	plain.stop(20)
	plain.endsWith(143, "Error")
}

// Each row of this test is a call that must not do anything to an object that is not there, not ready or no more.
// rows: D-19, D-21, D-22, R-21, R-24, X-8, P-013a, P-097, P-174, GAP-29
func TestWrongMoments(t *testing.T) {
	ours(t)
	p := newPod(t)
	ended, created := p.start(sh("exit 0")), p.create(asleep())
	ended.ended()
	none := strings.Repeat("0", 64)
	for _, c := range []struct {
		call string
		err  error
		code codes.Code
	}{
		{"start again", ended.start(), codes.FailedPrecondition},
		{"exec in what has ended", second(ended.exec("true")), codes.FailedPrecondition},
		{"exec in what was not started", second(created.exec("true")), codes.FailedPrecondition},
		{"reopen", second(n.Runtimes.ReopenContainerLog(p.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: ended.id})), codes.FailedPrecondition},
		{"update what has ended", second(n.Runtimes.UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: ended.id,
			Linux: &runtimeapi.LinuxContainerResources{CpuShares: 10}})), codes.FailedPrecondition},
		{"update of nothing", second(n.Runtimes.UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: none,
			Linux: &runtimeapi.LinuxContainerResources{CpuShares: 10}})), codes.NotFound},
		{"pod stats of nothing", second(n.Runtimes.PodSandboxStats(p.ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: none})), codes.NotFound},
		{"stats of nothing", second(n.Runtimes.ContainerStats(p.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: none})), codes.NotFound},
		{"exec in nothing", second(n.Runtimes.ExecSync(p.ctx, &runtimeapi.ExecSyncRequest{ContainerId: none, Cmd: []string{"true"}})), codes.NotFound},
		{"attach to nothing", second(n.Runtimes.Attach(p.ctx, &runtimeapi.AttachRequest{ContainerId: none, Stdout: true})), codes.NotFound},
		{"reopen of nothing", second(n.Runtimes.ReopenContainerLog(p.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: none})), codes.NotFound},
		{"port-forward to nothing", second(n.Runtimes.PortForward(p.ctx, &runtimeapi.PortForwardRequest{PodSandboxId: none, Port: []int32{80}})), codes.NotFound},
		{"start of nothing", second(n.Runtimes.StartContainer(p.ctx, &runtimeapi.StartContainerRequest{ContainerId: none})), codes.NotFound},
		{"stop of nothing", second(n.Runtimes.StopContainer(p.ctx, &runtimeapi.StopContainerRequest{ContainerId: none})), codes.OK},
		{"stop of what has ended", second(n.Runtimes.StopContainer(p.ctx, &runtimeapi.StopContainerRequest{ContainerId: ended.id})), codes.OK},
		{"removal of nothing", second(n.Runtimes.RemoveContainer(p.ctx, &runtimeapi.RemoveContainerRequest{ContainerId: none})), codes.OK},
	} {
		if c.code == codes.OK {
			equal(t, c.call, c.err, nil)
			continue
		}
		t.Run(c.call, func(t *testing.T) { refused(t, c.err, c.code) })
	}
}

// Names are free again when what had them is gone.
// rows: D-17, K-01, P-002, P-013, P-162, P-001, P-003, R-04
func TestNamesAreFreeAgain(t *testing.T) {
	p := newPod(t)
	named := func(c *runtimeapi.ContainerConfig) { c.Metadata.Name = "same" }
	first := p.start(asleep(), named)
	if _, err := p.tryCreate(sh("true"), named); err == nil {
		t.Error("two containers of the pod have one name and attempt")
	}
	next := p.create(sh("true"), named, func(c *runtimeapi.ContainerConfig) { c.Metadata.Attempt = 1 })
	next.remove()
	first.stop(0)
	first.remove()
	bad, err := p.tryCreate(named, func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such/command"} })
	if err == nil { // others may refuse it here
		if bad.start() == nil {
			t.Error("a command that is not there was started")
		}
		bad.stop(0)
		bad.remove()
	}
	p.start(asleep(), named).sh("true")

	// A pod with a running container is removed without having been stopped, and may come back.
	if _, err := n.Runtimes.RemovePodSandbox(p.ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	equal(t, "pods", len(p.list(&runtimeapi.PodSandboxFilter{Id: p.id})), 0)
	equal(t, "containers", len(p.containers(&runtimeapi.ContainerFilter{PodSandboxId: p.id})), 0)
	again := podOn(t, n, func(c *runtimeapi.PodSandboxConfig) { c.Metadata = p.config.Metadata })
	ended := again.start(asleep())
	ended.stop(0)
}

// The calls about the node itself.
// rows, D-102, D-172, D-174, GAP-39, D-210
func TestNode(t *testing.T) {
	ours(t)
	v, err := n.Runtimes.Version(t.Context(), &runtimeapi.VersionRequest{})
	if err != nil || v.Version != "0.1.0" || v.RuntimeApiVersion != "v1" || v.RuntimeName != "criserver" || v.RuntimeVersion == "" {
		t.Errorf("version %v, %v", v, err)
	}
	s, err := n.Runtimes.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	conditions := map[string]bool{}
	for _, c := range s.Status.Conditions {
		conditions[c.Type] = c.Status
	}
	equal(t, "RuntimeReady", conditions["RuntimeReady"], true)
	equal(t, "NetworkReady", conditions["NetworkReady"], true)
	f := s.Features
	if !f.GetSupplementalGroupsPolicy() || !f.GetMountOptions() || !f.GetUserNamespacesHostNetwork() {
		t.Errorf("features %v", f) // kept in the tests of groups, mounts and user namespaces
	}
	var config map[string]any
	if err := json.Unmarshal([]byte(s.Info["config"]), &config); err != nil {
		t.Fatalf("config in the details: %v", err)
	}
	for _, key := range []string{"stateDir", "sandboxImage", "maxContainerLogLineSize", "networkPluginConfDir"} {
		if config[key] == nil {
			t.Errorf("the config in the details has no %s", key)
		}
	}
	for _, key := range []string{"golang", "cniconfig", "lastCNILoadStatus"} {
		if s.Info[key] == "" {
			t.Errorf("the details have no %s", key)
		}
	}
	plain, err := n.Runtimes.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil || plain.Info != nil {
		t.Errorf("details without asking: %v, %v", plain.GetInfo(), err)
	}
	driver, err := n.Runtimes.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || driver.GetLinux().GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("cgroup driver %v, %v", driver, err) // TestCgroupParent sees it used
	}
	for _, cidr := range []string{"10.1.0.0/16", "10.1.0.0/16,fd00:1::/64"} {
		if _, err := n.Runtimes.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{
			NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidr}}}); err != nil {
			t.Errorf("pod CIDR %s: %v", cidr, err)
		}
	}
	fi, err := os.Stat(n.Socket)
	if err != nil || fi.Mode().Perm()&0o007 != 0 {
		t.Errorf("the socket is open to everybody: %v, %v", fi.Mode(), err)
	}
}

// While there is no network the node says so, and pods with the network of the node run all the same.
// rows: Q-02, D-141, N-01, R-01, R-28
func TestNetworkIsNotReady(t *testing.T) {
	ours(t)
	conf := filepath.Join(n.Dir, "net.d/test.conflist")
	good, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	ready := func() (bool, string) {
		s, err := n.Runtimes.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err != nil {
			return false, err.Error()
		}
		for _, c := range s.Status.Conditions {
			if c.Type == "NetworkReady" {
				return c.Status, c.Reason + ": " + c.Message
			}
		}
		return false, "no condition"
	}
	if err := os.WriteFile(conf, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(conf, good, 0o644); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "the network is ready again", ready)
	}()
	eventually(t, 10*time.Second, "the network is not ready", func() (bool, string) {
		is, why := ready()
		return !is && strings.HasPrefix(why, "NetworkPluginNotReady: ") && strings.Contains(why, "test.conflist"), why
	})
	if _, err := n.Runtimes.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Error(err)
	}
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	p.start(asleep(), security(func(s *securityContext) { s.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE })).sh("true")
}

// All is as it was when the daemon comes back: ready and stopped pods, containers in each state, addresses, mounts.
// rows: D-161, D-162, P-138, P-139, P-146, P-147, P-149, T-02, T-17
func TestRestartChangesNothing(t *testing.T) {
	ours(t)
	f := newFleet(t)
	dir := t.TempDir()
	mounted := f.web.start(asleep(), mounts(&runtimeapi.Mount{ContainerPath: "/m", HostPath: dir, Readonly: true}))
	if _, err := n.Runtimes.StopPodSandbox(f.db.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: f.db.id}); err != nil {
		t.Fatal(err)
	}
	see := func() (all []proto.Message) {
		for _, p := range []*pod{f.web, f.db} {
			all = append(all, p.status(), p.list(&runtimeapi.PodSandboxFilter{Id: p.id})[0])
		}
		for _, c := range []*container{f.running, f.created, f.exited, f.sole, mounted} {
			all = append(all, c.status(), c.containers(&runtimeapi.ContainerFilter{Id: c.id})[0])
		}
		return all
	}
	for _, end := range []func(*node.Node) error{(*node.Node).Kill, (*node.Node).Stop} {
		before := see()
		restart(t, n, end)
		for i, now := range see() {
			if !proto.Equal(before[i], now) {
				t.Errorf("before %v\nafter  %v", before[i], now)
			}
		}
	}
	f.running.sh("true")
	if err := f.created.start(); err != nil {
		t.Errorf("start of a container that was created before: %v", err)
	}
	stdout, _, _ := crictl(t, "x", "exec", "-i", f.running.id, "cat")
	equal(t, "exec", stdout, "x")
	f.web.start(sh("echo new")).ended()
}

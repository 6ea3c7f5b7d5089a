package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/libct"
	"github.com/criserver/criserver/pkg/libct/wire"
	"github.com/criserver/criserver/pkg/sandbox/store"
)

var background = context.Background()

// nothingLeft fails the test if a mount or an entry of the state is left.
func (n *node) nothingLeft() {
	n.t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.dir))
	if err != nil || len(mounts) > 0 {
		n.t.Errorf("%d mounts are left, the first on %v (%v)", len(mounts), mounts, err)
	}
	for _, d := range []string{"state/pods", "root/containers", "root/records/pods", "root/records/containers"} {
		entries, err := os.ReadDir(filepath.Join(n.dir, d))
		if err != nil || len(entries) > 0 {
			n.t.Errorf("%s has %v (%v), want nothing", d, entries, err)
		}
	}
	if used := n.images.used(); used != 0 {
		n.t.Errorf("the image is still used %d times", used)
	}
	if attached, _ := n.net.count(); attached != 0 {
		n.t.Errorf("%d pods are still attached", attached)
	}
}

// rows: D-16, X-22, E-02
func TestPodLife(t *testing.T) {
	n := newNode(t)
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	events := n.Subscribe(ctx)
	pod := n.runPod("life")
	p, err := n.Pod(pod[:12])
	if err != nil || p.State != PodReady || len(p.IPs) != 1 {
		t.Fatalf("pod is %+v (%v)", p, err)
	}
	hosts, err := os.ReadFile(filepath.Join(n.dir, "state/pods", pod, "hosts"))
	if err != nil || !strings.Contains(string(hosts), "10.1.2.3\t") {
		t.Errorf("hosts file %q does not name the pod's address (%v)", hosts, err)
	}
	c := n.create(pod, "c")
	n.start(c)
	if err := n.StartContainer(background, c); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second start gave %v", err)
	}
	n.fake.exit(c, wire.Exit{Code: 3}, true)
	if s := n.container(c); s.State != ContainerExited || s.ExitCode != 3 || s.Reason != ReasonError || s.FinishedAt.Before(s.StartedAt) {
		t.Errorf("after its exit the container is %+v", s)
	}
	for range 2 {
		if err := n.StopPod(background, pod); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := n.Pod(pod); err != nil || p.State != PodStopped || p.IPs != nil {
		t.Errorf("after its stop the pod is %+v (%v)", p, err)
	}
	if _, err := n.CreateContainer(background, pod, containerConfig("late")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a creation in a stopped pod gave %v", err)
	}
	if err := n.RemovePod(background, pod); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Container(c); !errdefs.IsNotFound(err) {
		t.Errorf("the container of a removed pod gave %v", err)
	}
	n.nothingLeft()
	want := []runtimeapi.ContainerEventType{0, 1, 0, 1, 2, 2, 3, 3}
	for i, w := range want {
		if e := <-events; e.Type != w {
			t.Errorf("event %d is %v, want %v", i, e.Type, w)
		}
	}
}

// rows: S-02, D-18, X-1, GAP-17
func TestRunPodJoins(t *testing.T) {
	n := newNode(t)
	n.net.hold = make(chan struct{})
	short, cancel := context.WithTimeout(background, 50*time.Millisecond)
	defer cancel()
	_, err := n.RunPod(short, podConfig("join"), "")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "network") {
		t.Fatalf("a caller that cannot wait got %v, want a deadline that names the stage", err)
	}
	var wg sync.WaitGroup
	ids := make([]string, 4)
	for i := range ids {
		wg.Go(func() { ids[i], _ = n.RunPod(background, podConfig("join"), "") })
	}
	close(n.net.hold)
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] || id == "" {
			t.Fatalf("joined callers got %q", ids)
		}
	}
	if _, setups := n.net.count(); setups != 1 {
		t.Errorf("the network was set up %d times", setups)
	}
	other := podConfig("join")
	other.Hostname = "other"
	if _, err := n.RunPod(background, other, ""); !errdefs.IsAlreadyExists(err) {
		t.Errorf("another pod of the same metadata gave %v", err)
	}
	ambiguous := podConfig("a_b")
	ambiguous.Metadata.Namespace = "c"
	joined := podConfig("a")
	joined.Metadata.Namespace, joined.Metadata.Uid = "b_c", ambiguous.Metadata.Uid
	for _, cfg := range []*runtimeapi.PodSandboxConfig{ambiguous, joined} {
		if _, err := n.RunPod(background, cfg, ""); err != nil {
			t.Errorf("names that look alike when joined: %v", err)
		}
	}
}

// TestCreationIsBounded: what hangs ends in time and leaves nothing, and until then a caller is answered by its own deadline.
// rows: D-60, D-67
func TestCreationIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		pod := n.runPod("good")
		n.net.hold = make(chan struct{})
		n.fake.stuck = true
		for what, create := range map[string]func(context.Context) error{
			"pod": func(ctx context.Context) error { _, err := n.RunPod(ctx, podConfig("hangs"), ""); return err },
			"container": func(ctx context.Context) error {
				_, err := n.CreateContainer(ctx, pod, containerConfig("hangs"))
				return err
			},
		} {
			const kubelet = 2 * time.Minute // runtimeRequestTimeout
			ctx, cancel := context.WithTimeout(background, kubelet)
			began := time.Now()
			err := create(ctx)
			cancel()
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != kubelet {
				t.Errorf("a %s that hangs: after %v %v", what, took, err)
			}
			err = create(background) // joins
			if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took != createLimit {
				t.Errorf("a %s that hangs for good: after %v %v", what, took, err)
			}
		}
		if pods, containers := len(n.Pods()), len(n.Containers()); pods != 1 || containers != 0 {
			t.Errorf("%d pods and %d containers are left", pods, containers)
		}
		n.net.hold, n.fake.stuck = nil, false
		n.create(pod, "hangs") // the name is free
	})
}

// TestNetworksAreCollected at the start and then again and again, but for the pods that are attached.
// rows: GAP-12
func TestNetworksAreCollected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		synctest.Wait() // until the first time is over
		kept, stopped := n.runPod("kept"), n.runPod("stopped")
		if err := n.StopPod(background, stopped); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2*collectInterval + time.Second)
		n.net.mu.Lock()
		defer n.net.mu.Unlock()
		if want := [][]string{nil, {kept}, {kept}}; !reflect.DeepEqual(n.net.kept, want) {
			t.Errorf("collected but for %v, want %v", n.net.kept, want)
		}
	})
}

// TestNetworksAreChecked: a pod whose attachment is damaged is named until it is gone.
// rows: GAP-13
func TestNetworksAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.runPod("good")
		bad := n.runPod("bad")
		want := func(want ...string) {
			t.Helper()
			time.Sleep(checkInterval + time.Second)
			if got := n.DamagedNetworks(); !slices.Equal(got, want) {
				t.Errorf("damaged networks %q, want %q", got, want)
			}
		}
		want()
		n.net.mu.Lock()
		delete(n.net.attached, bad)
		n.net.mu.Unlock()
		want("default/bad")
		if err := n.RemovePod(background, bad); err != nil {
			t.Fatal(err)
		}
		want()
	})
}

// TestInitIsKilledLast: by the kernel, which cannot be asked here for what only root of the whole machine may have.
// rows: D-104
func TestInitIsKilledLast(t *testing.T) {
	n := newNode(t)
	for lowest, want := range map[int]int{-1000: -998, -500: -500} {
		n.o.Host.MinOOMScoreAdj = lowest
		cfg := podConfig(fmt.Sprint("init", lowest))
		cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
		if _, err := n.RunPod(background, cfg, ""); err != nil {
			t.Fatal(err)
		}
		if got := *n.fake.inits[len(n.fake.inits)-1].OOMScoreAdj; got != want {
			t.Errorf("oom_score_adj %d where %d is the lowest, want %d", got, lowest, want)
		}
	}
}

// rows: D-17, D-23, P-005, GAP-17
func TestFailedPodLeavesNothing(t *testing.T) {
	n := newNode(t)
	boom := errors.New("boom")
	n.net.fail(boom, nil)
	if _, err := n.RunPod(background, podConfig("x"), ""); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	n.nothingLeft()
	n.net.fail(nil, nil)
	n.runPod("x") // the name is free
}

// rows: D-24
func TestDebt(t *testing.T) {
	n := newNode(t)
	n.net.fail(errors.New("no"), errors.New("stuck"))
	if _, err := n.RunPod(background, podConfig("debt"), ""); err == nil {
		t.Fatal("a pod without network was created")
	}
	pods := n.Pods()
	if len(pods) != 1 || pods[0].State != PodRemoving {
		t.Fatalf("want the pod that could not be undone, got %+v", pods)
	}
	n.net.fail(nil, nil)
	n.eventually("the debt is paid", func() bool { return len(n.Pods()) == 0 })
	n.nothingLeft()
}

// rows: R-09, D-32
func TestStartError(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	c := n.create(pod, "c")
	n.fake.startErr = &libct.StartError{Reason: `exec: "x": executable file not found in $PATH`}
	err := n.StartContainer(background, c)
	var start *libct.StartError
	if !errors.As(err, &start) {
		t.Fatal(err)
	}
	if s := n.container(c); s.State != ContainerExited || s.ExitCode != 128 || s.Reason != ReasonStartError || !strings.Contains(s.Message, "not found") {
		t.Errorf("the container is %+v", s)
	}
}

func TestExitWithinStart(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	c := n.create(pod, "c")
	n.fake.onStart = func(id string) { n.fake.exit(id, wire.Exit{Code: 0}, true) }
	n.start(c)
	if s := n.container(c); s.State != ContainerExited || s.Reason != ReasonCompleted || s.StartedAt.IsZero() {
		t.Errorf("the container is %+v", s)
	}
}

// rows: D-62, D-63, X-3, P-027
func TestStopSignalsOnce(t *testing.T) {
	n := newNode(t)
	c := n.create(n.runPod("p"), "c")
	n.start(c)
	ctx, cancel := context.WithCancel(background)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.StopContainer(ctx, c, time.Hour); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled stop gave %v", err)
		}
	})
	n.eventually("the signal was sent", func() bool { return len(n.fake.sent(c)) == 1 })
	cancel()
	wg.Wait()
	if s := n.container(c); s.State != ContainerRunning {
		t.Fatalf("a cancelled stop ended the container: %+v", s)
	}
	wg.Go(func() {
		if err := n.StopContainer(background, c, time.Hour); err != nil {
			t.Error(err)
		}
	})
	if err := n.StopContainer(background, c, 20*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	got := n.fake.sent(c)
	if got[0] != syscall.SIGTERM || len(got) < 2 || slices.Contains(got[1:], syscall.SIGTERM) {
		t.Errorf("signals %v, want one SIGTERM and then SIGKILL", got)
	}
	if s := n.container(c); s.ExitCode != 137 {
		t.Errorf("exit code %d, want 137", s.ExitCode)
	}
}

// rows: D-161
func TestRestart(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	runs, ends, created, raced := n.create(pod, "runs"), n.create(pod, "ends"), n.create(pod, "created"), n.create(pod, "raced")
	n.start(runs)
	n.start(ends)
	before := n.container(runs)
	n.Close()
	n.fake.exit(ends, wire.Exit{Code: 7}, false)
	n.fake.Start(background, raced) // as if the daemon died before it could record the start
	n.open()
	if s := n.container(runs); s.State != ContainerRunning || !s.CreatedAt.Equal(before.CreatedAt) || !s.StartedAt.Equal(before.StartedAt) || s.Pid != before.Pid {
		t.Errorf("after the restart %+v, before %+v", s, before)
	}
	if s := n.container(ends); s.State != ContainerExited || s.ExitCode != 7 || s.Reason != ReasonError {
		t.Errorf("a container that ended meanwhile is %+v", s)
	}
	if s := n.container(created); s.State != ContainerCreated {
		t.Errorf("a created container is %+v", s)
	}
	if s := n.container(raced); s.State != ContainerRunning {
		t.Errorf("a container started meanwhile is %+v", s)
	}
	if used := n.images.used(); used != 4 {
		t.Errorf("the image is used %d times, want 4", used)
	}
	if err := n.RemovePod(background, pod); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
}

// TestRecoveryRemoves plants what a killed daemon can leave: half-made and half-removed objects, a damaged record, and leftovers without a record.
// rows: D-164, D-165
func TestRecoveryRemoves(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("keep")
	half := n.create(pod, "half")
	gone := n.runPod("gone")
	bad := n.runPod("bad")
	n.Close()
	n.rewrite(store.Containers, half, ContainerCreating)
	n.rewrite(store.Pods, gone, PodRemoving)
	if err := os.WriteFile(filepath.Join(n.dir, "root/records/pods", bad+".json"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	stray := strings.Repeat("e", 64)
	for _, d := range []string{"root/containers", "state/pods"} {
		if err := os.MkdirAll(filepath.Join(n.dir, d, stray, "x"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.fake.states[stray] = &wire.ContainerState{ID: stray}
	n.open()
	n.eventually("all but the good pod is gone", func() bool {
		_, e1 := os.Stat(filepath.Join(n.dir, "root/containers", stray))
		_, e2 := os.Stat(filepath.Join(n.dir, "state/pods", stray))
		_, e3 := os.Stat(filepath.Join(n.dir, "state/pods", bad))
		return len(n.Pods()) == 1 && len(n.Containers()) == 0 && os.IsNotExist(e1) && os.IsNotExist(e2) && os.IsNotExist(e3) && !n.fake.has(stray)
	})
	if p, err := n.Pod(pod); err != nil || p.State != PodReady {
		t.Errorf("the good pod is %+v (%v)", p, err)
	}
	n.net.mu.Lock()
	delete(n.net.attached, bad) // the real network's GC does it
	n.net.mu.Unlock()
}

// TestStopPodWithHalfMadeContainer: a container whose creation a kill cut short has no process to wait for.
func TestStopPodWithHalfMadeContainer(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	half := n.create(pod, "half")
	n.Close()
	n.rewrite(store.Containers, half, ContainerCreating)
	n.fake.states = map[string]*wire.ContainerState{}
	n.open()
	ctx, cancel := context.WithTimeout(background, killLimit/2)
	defer cancel()
	if err := n.RemovePod(ctx, pod); err != nil {
		t.Fatal(err)
	}
	n.nothingLeft()
}

// TestFullDisk: what is asked to end ends, though nothing can be written; what is asked to begin is refused.
func TestFullDisk(t *testing.T) {
	n := newNode(t)
	n.Close()
	root := filepath.Join(n.dir, "root")
	if err := unix.Mount("full", root, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	n.open()
	pod := n.runPod("p")
	c := n.create(pod, "c")
	n.start(c)
	ballast := filepath.Join(root, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	if _, err := n.RunPod(background, podConfig("q"), ""); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a pod on a full disk gave %v", err)
	}
	n.fake.exit(c, wire.Exit{Code: 4}, true)
	if s := n.container(c); s.State != ContainerExited || s.ExitCode != 4 {
		t.Errorf("the container is %+v", s)
	}
	for _, f := range []func(context.Context, string) error{n.StopPod, n.RemovePod} {
		if err := f(background, pod); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	n.eventually("the refused pod is gone", func() bool { return len(n.Pods()) == 0 })
	if left, _ := os.ReadDir(filepath.Join(root, "records/pods")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
}

// rewrite gives a record another state, as a daemon leaves it that is killed at the wrong moment.
func (n *node) rewrite(k store.Kind, id string, state any) {
	n.t.Helper()
	var err error
	switch s := state.(type) {
	case PodState:
		p := n.pods[id]
		p.rec.State = s
		err = n.store.Put(k, id, p.rec)
	case ContainerState:
		c := n.containers[id]
		c.rec.State = s
		err = n.store.Put(k, id, c.rec)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

// rows: D-163, D-34
func TestReboot(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	c := n.create(pod, "c")
	n.start(c)
	n.Close()
	for _, rec := range []func(){
		func() { p := n.pods[pod]; p.rec.Boot = "earlier"; n.rewrite(store.Pods, pod, PodReady) },
		func() {
			c := n.containers[c]
			c.rec.Boot = "earlier"
			n.rewrite(store.Containers, c.id, ContainerRunning)
		},
	} {
		rec()
	}
	n.fake.states = map[string]*wire.ContainerState{}
	n.open()
	if s := n.container(c); s.State != ContainerExited || !s.Unknown || s.ExitCode != 255 {
		t.Errorf("after a restart of the machine the container is %+v", s)
	}
	n.eventually("the pod is stopped", func() bool { p, err := n.Pod(pod); return err == nil && p.State == PodStopped })
	if attached, _ := n.net.count(); attached != 0 {
		t.Error("the pod's address was not given back")
	}
}

// rows: T-01
func TestInitDeathMakesPodNotReady(t *testing.T) {
	n := newNode(t)
	cfg := podConfig("init")
	cfg.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	pod, err := n.RunPod(background, cfg, "")
	if err != nil {
		t.Fatal(err)
	}
	n.fake.exit(pod, wire.Exit{Code: 137}, true)
	if p, err := n.Pod(pod); err != nil || p.State == PodReady {
		t.Errorf("the pod is %+v (%v)", p, err)
	}
}

func TestStopPodDuringCreation(t *testing.T) {
	n := newNode(t)
	pod := n.runPod("p")
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		wg.Go(func() {
			if _, err := n.CreateContainer(background, pod, containerConfig(name)); err != nil && !errdefs.IsFailedPrecondition(err) {
				t.Error(err)
			}
		})
	}
	if err := n.StopPod(background, pod); err != nil {
		t.Error(err)
	}
	wg.Wait()
	for _, c := range n.Containers() {
		if c.State != ContainerExited {
			t.Errorf("in a stopped pod container %s is %s", c.Config.Metadata.Name, c.State)
		}
	}
}

func TestTransitions(t *testing.T) {
	all := []ContainerState{ContainerCreating, ContainerCreated, ContainerRunning, ContainerExited, ContainerRemoving}
	order := map[ContainerState]int{}
	for i, s := range all {
		order[s] = i
	}
	for from := range order {
		for to := range order {
			err := checkTransition(containerTransitions, "container", "x", from, to)
			if err == nil && order[to] < order[from] {
				t.Errorf("%s may go back to %s", from, to)
			}
			if err != nil && !errdefs.IsFailedPrecondition(err) {
				t.Errorf("%s to %s: %v", from, to, err)
			}
		}
	}
}

func TestBandwidth(t *testing.T) {
	for in, want := range map[string]int64{"": 0, "10M": 10e6, "1Gi": 1 << 30, "7": 7, "-1M": 0, "M": 0, "1X": 0, "9223372036854775807k": 0} {
		cfg := &runtimeapi.PodSandboxConfig{Annotations: map[string]string{"b": in}}
		if got := bandwidth(cfg, "b"); got != want {
			t.Errorf("bandwidth %q is %d, want %d", in, got, want)
		}
	}
}

package blackbox

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rows, S-14, S-15, K-26, D-20, P-003a, P-004, T-01
func TestPodLifecycle(t *testing.T) {
	p := newPod(t)
	s := p.status()
	equal(t, "state", s.State, runtimeapi.PodSandboxState_SANDBOX_READY)
	equal(t, "name", s.Metadata.Name, p.config.Metadata.Name)
	equal(t, "uid", s.Metadata.Uid, p.config.Metadata.Uid)
	equal(t, "label", s.Labels["test"], p.config.Labels["test"])
	equal(t, "annotation", s.Annotations["example.org/note"], "kept as it is")
	if age := time.Since(time.Unix(0, s.CreatedAt)); age < 0 || age > time.Minute {
		t.Errorf("created %v ago", age)
	}
	equal(t, "pods with its ID", len(p.list(&runtimeapi.PodSandboxFilter{Id: p.id})), 1)
	equal(t, "pods with its label", len(p.list(&runtimeapi.PodSandboxFilter{LabelSelector: p.config.Labels})), 1)

	if _, err := n.Runtimes.StopPodSandbox(p.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	equal(t, "state", p.status().State, runtimeapi.PodSandboxState_SANDBOX_NOTREADY)
	notReady := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	equal(t, "stopped pods with its ID", len(p.list(&runtimeapi.PodSandboxFilter{Id: p.id, State: notReady})), 1)
	if _, err := p.tryCreate(asleep()); err == nil {
		t.Error("a container was created in a stopped pod")
	}
	for range 2 { // both calls may be repeated
		p.remove()
	}
	_, err := n.Runtimes.PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	refused(t, err, codes.NotFound, p.id)
}

func (p *pod) list(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	p.t.Helper()
	r, err := p.node.Runtimes.ListPodSandbox(p.ctx, &runtimeapi.ListPodSandboxRequest{Filter: f})
	if err != nil {
		p.t.Fatal(err)
	}
	return r.Items
}

func (p *pod) containers(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	p.t.Helper()
	r, err := p.node.Runtimes.ListContainers(p.ctx, &runtimeapi.ListContainersRequest{Filter: f})
	if err != nil {
		p.t.Fatal(err)
	}
	return r.Containers
}

// The kubelet asks again when an answer was lost; it gets the pod that was made, not a second one.
// rows: S-02, D-18, P-010a, X-1
func TestRunPodAgain(t *testing.T) {
	ours(t)
	p := newPod(t)
	r, err := n.Runtimes.RunPodSandbox(p.ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "the pod's ID", r.PodSandboxId, p.id)
	equal(t, "pods", len(p.list(&runtimeapi.PodSandboxFilter{LabelSelector: p.config.Labels})), 1)
}

// rows, T-16, T-17, D-20, D-22, P-171, P-173, K-10
func TestContainerLifecycle(t *testing.T) {
	p := newPod(t)
	c := p.create(sh("trap 'exit 0' TERM; echo ready; sleep 1000 & wait"))
	s := c.status()
	equal(t, "state", s.State, runtimeapi.ContainerState_CONTAINER_CREATED)
	equal(t, "log path", s.LogPath, c.logPath())
	equal(t, "image", s.Image.Image, busybox)
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	s = c.status()
	equal(t, "state", s.State, runtimeapi.ContainerState_CONTAINER_RUNNING)
	if s.StartedAt < s.CreatedAt || s.FinishedAt != 0 {
		t.Errorf("created %d, started %d, finished %d", s.CreatedAt, s.StartedAt, s.FinishedAt)
	}
	if err := c.start(); err == nil {
		t.Error("a running container was started again")
	}
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	equal(t, "running containers of the pod", len(p.containers(&runtimeapi.ContainerFilter{PodSandboxId: p.id, State: running})), 1)
	equal(t, "containers with its ID", len(p.containers(&runtimeapi.ContainerFilter{Id: c.id})), 1)
	equal(t, "containers with another label", len(p.containers(&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"container": "other"}})), 0)

	c.hasLogged("ready") // before it, the shell does not heed the signal
	c.stop(10)
	s = c.endsWith(0, "Completed")
	if s.FinishedAt < s.StartedAt {
		t.Errorf("started %d, finished %d", s.StartedAt, s.FinishedAt)
	}
	c.stop(10) // may be repeated
	c.remove()
	c.remove()
	_, err := n.Runtimes.ContainerStatus(p.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
	refused(t, err, codes.NotFound, c.id)
}

// rows: T-18, T-19, D-30, P-014, P-014a
func TestExitCodes(t *testing.T) {
	p := newPod(t)
	for _, c := range []struct {
		name   string
		script string
		code   int32
		reason string
	}{
		{"good", "exit 0", 0, "Completed"},
		{"bad", "exit 7", 7, "Error"},
		{"largest", "exit 255", 255, "Error"},
		{"deaf to its own SIGKILL", "kill -KILL $$; exit 4", 4, "Error"}, // as process 1 of a namespace is
		{"killed by a child's signal", "trap 'exit 3' USR1; (kill -USR1 1); sleep 1 & wait", 3, "Error"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := p.in(t)
			p.start(sh(c.script)).endsWith(c.code, c.reason)
		})
	}
}

// rows: R-10, D-33, D-61, K-16, P-021
func TestStopSignals(t *testing.T) {
	p := newPod(t)
	t.Run("a container that heeds SIGTERM ends by itself", func(t *testing.T) {
		p := p.in(t)
		c := p.start(sh("trap 'exit 5' TERM; echo ready; sleep 1000 & wait"))
		c.hasLogged("ready")
		c.stop(20)
		c.endsWith(5, "Error")
	})
	t.Run("one that does not is killed after the grace period", func(t *testing.T) {
		p := p.in(t)
		c := p.start(sh("trap '' TERM; echo ready; while :; do sleep 1; done"))
		c.hasLogged("ready")
		start := time.Now()
		c.stop(1)
		if took := time.Since(start); took < 900*time.Millisecond || took > 5*time.Second {
			t.Errorf("it took %v", took)
		}
		c.endsWith(137, "Error")
	})
	t.Run("without grace it is killed at once", func(t *testing.T) {
		p := p.in(t)
		c := p.start(sh("trap '' TERM; echo ready; while :; do sleep 1; done"))
		c.hasLogged("ready")
		start := time.Now()
		c.stop(0)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it took %v", took)
		}
		c.endsWith(137, "Error")
	})
	t.Run("the image's stop signal is used", func(t *testing.T) {
		p := p.in(t)
		c := p.start(image(nginx), sh("trap 'exit 6' QUIT; echo ready; sleep 1000 & wait")) // its STOPSIGNAL is SIGQUIT
		c.hasLogged("ready")
		c.stop(20)
		c.endsWith(6, "Error")
	})
}

// Removing a container that runs ends it; a second stop must not wait for the first one's grace period.
// rows: R-11, P-026, P-172
func TestRemoveWhileRunning(t *testing.T) {
	p := newPod(t)
	c := p.start(sh("trap '' TERM; echo ready; while :; do sleep 1; done"))
	c.hasLogged("ready")
	slow := make(chan struct{})
	go func() {
		defer close(slow)
		_, _ = n.Runtimes.StopContainer(p.ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: 60})
	}()
	time.Sleep(50 * time.Millisecond) // lets the slow stop come first; the test holds either way
	start := time.Now()
	c.stop(0)
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("a stop without grace waited %v for one with a long grace", took)
	}
	<-slow
	c.remove()
}

// rows: R-09, D-30, D-32, D-35, X-2, T-19
func TestMissingCommand(t *testing.T) {
	p := newPod(t)
	c, err := p.tryCreate(func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/no/such/command"} })
	if other() && err != nil {
		return // others may find it here
	}
	if err != nil {
		t.Fatal(err)
	}
	if err = c.start(); err == nil {
		t.Fatal("a command that does not exist was started")
	}
	contains(t, "the message", err.Error(), "/no/such/command")
	c.endsWith(128, "StartError")
}

// rows: D-30, T-19
func TestOOMKilled(t *testing.T) {
	p := newPod(t)
	c := p.start(sh("dd if=/dev/zero of=/dev/null bs=200M count=1"), resources(func(r *runtimeapi.LinuxContainerResources) {
		r.MemoryLimitInBytes = 32 << 20
	}))
	s := c.ended()
	equal(t, "reason", s.Reason, "OOMKilled")
	if s.ExitCode == 0 {
		t.Error("its exit code is 0")
	}
}

// rows: K-05, K-06, K-07, P-042
func TestEnvironment(t *testing.T) {
	p := newPod(t)
	got := p.says(func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"/bin/sh", "-c"}
		c.Args = []string{`echo "$A|$B|$PWD|$HOME|$PATH"; printf '<%s>' "$@"`, "arg0", "one two", ""}
		c.WorkingDir = "/made/for/it"
		c.Envs = []*runtimeapi.KeyValue{{Key: "A", Value: []byte("1=2")}, {Key: "B", Value: []byte("two words")}}
	})
	contains(t, "its output", got, "1=2|two words|/made/for/it|/root|/usr/local/sbin", "<one two><>")
}

// What the image says is used where the container's configuration says nothing.
// rows: K-05, K-06, C-09
func TestImageConfig(t *testing.T) {
	p := newPod(t)
	pull(t, "docker.io/edge/config:v1")
	plain := func(c *runtimeapi.ContainerConfig) { c.Image.Image = "docker.io/edge/config:v1" }
	got := p.says(plain)
	equal(t, "entrypoint and cmd", strings.TrimSpace(got), "entry cmd")
	got = p.says(plain, func(c *runtimeapi.ContainerConfig) { c.Args = []string{"args"} })
	equal(t, "entrypoint and args", strings.TrimSpace(got), "entry args")
	got = p.says(plain, sh(`echo "$(id -u):$(id -g) $PWD $A $B"`))
	equal(t, "the rest", strings.TrimSpace(got), "1000:2000 /made/by/runtime 1 two words")
}

// Ten pods at a time come and go; all the node's resources come back.
func TestManyPodsLeaveNothing(t *testing.T) {
	leavesNothing(t)
	for range 3 {
		t.Run("round", func(t *testing.T) {
			for range 10 {
				t.Run("pod", func(t *testing.T) {
					t.Parallel()
					p := podOn(t, n)
					c := p.start(asleep())
					equal(t, "exec", c.sh("echo here"), "here")
				})
			}
		})
	}
	if other() {
		return
	}
	const more = 20
	fds := func(pid int) int {
		open, _ := filepath.Glob(filepath.Join("/proc", itoa(pid), "fd/*"))
		return len(open)
	}
	before := [2]int{fds(n.Pid()), fds(n.ShimPid())}
	t.Run("again", func(t *testing.T) {
		for range more {
			t.Run("pod", func(t *testing.T) {
				p := podOn(t, n)
				p.start(sh("exit 0")).ended()
			})
		}
	})
	eventually(t, 10*time.Second, "descriptors do not grow with the pods that were", func() (bool, string) {
		now := [2]int{fds(n.Pid()), fds(n.ShimPid())}
		return now[0] < before[0]+more/2 && now[1] < before[1]+more/2, fmt.Sprintf("daemon and shim had %v, now %v", before, now)
	})
}

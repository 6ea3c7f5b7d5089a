package blackbox

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

var serial atomic.Int64 // tells pods and containers apart

// podConfig is a pod as the kubelet asks for one.
func podConfig(name, logs string) *runtimeapi.PodSandboxConfig {
	uid := fmt.Sprintf("uid-%d-%d", os.Getpid(), serial.Add(1))
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: uid, Namespace: "blackbox"},
		LogDirectory: logs,
		Labels:       map[string]string{"test": name},
		Annotations:  map[string]string{"example.org/note": "kept as it is"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: node.CgroupParent(),
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

// containerTweak changes a container's configuration before it is created.
type containerTweak func(*runtimeapi.ContainerConfig)

// containerConfig is a container as the kubelet asks for one.
func containerConfig(name string, tweaks ...containerTweak) *runtimeapi.ContainerConfig {
	cfg := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: busybox},
		LogPath:  name + ".log",
		Labels:   map[string]string{"container": name},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
	for _, tweak := range tweaks {
		tweak(cfg)
	}
	return cfg
}

// sh runs a script.
func sh(script string) containerTweak {
	return func(c *runtimeapi.ContainerConfig) { c.Command = []string{"/bin/sh", "-c", script} }
}

// asleep does nothing until it is told to end.
func asleep() containerTweak { return sh("trap 'exit 0' TERM; sleep 1000 & wait") }

func image(ref string) containerTweak {
	return func(c *runtimeapi.ContainerConfig) { c.Image.Image = ref }
}

func security(tweak func(*runtimeapi.LinuxContainerSecurityContext)) containerTweak {
	return func(c *runtimeapi.ContainerConfig) { tweak(c.Linux.SecurityContext) }
}

func resources(tweak func(*runtimeapi.LinuxContainerResources)) containerTweak {
	return func(c *runtimeapi.ContainerConfig) { tweak(c.Linux.Resources) }
}

func mounts(m ...*runtimeapi.Mount) containerTweak {
	return func(c *runtimeapi.ContainerConfig) { c.Mounts = append(c.Mounts, m...) }
}

// pod is a pod of one test.
type pod struct {
	t      *testing.T
	node   *node.Node
	id     string
	config *runtimeapi.PodSandboxConfig
	ctx    context.Context
}

// newPod runs a pod, which goes when the test ends and must leave nothing behind.
func newPod(t *testing.T, tweaks ...func(*runtimeapi.PodSandboxConfig)) *pod {
	t.Helper()
	leavesNothing(t)
	p := podOn(t, n, tweaks...)
	return p
}

var unfit = regexp.MustCompile(`[^a-z0-9]+`)

// podOn runs a pod on a node.
func podOn(t *testing.T, on *node.Node, tweaks ...func(*runtimeapi.PodSandboxConfig)) *pod {
	t.Helper()
	name := strings.Trim(unfit.ReplaceAllString(strings.ToLower(t.Name()), "-"), "-")
	p := &pod{t: t, node: on, ctx: context.Background(), config: podConfig(name[:min(len(name), 50)], t.TempDir())}
	for _, tweak := range tweaks {
		tweak(p.config)
	}
	r, err := on.Runtimes.RunPodSandbox(p.ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		t.Fatalf("run pod: %v", err)
	}
	p.id = r.PodSandboxId
	t.Cleanup(p.remove)
	t.Cleanup(func() {
		if t.Failed() && !other() {
			t.Logf("the end of the daemon's log:\n%s", on.LogTail(12))
		}
	})
	return p
}

// in is the pod as a subtest has it.
func (p *pod) in(t *testing.T) *pod {
	q := *p
	q.t = t
	return &q
}

func (p *pod) remove() {
	p.t.Helper()
	if _, err := p.node.Runtimes.StopPodSandbox(p.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Errorf("stop pod: %v", err)
	}
	if _, err := p.node.Runtimes.RemovePodSandbox(p.ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Errorf("remove pod: %v", err)
	}
}

func (p *pod) status() *runtimeapi.PodSandboxStatus {
	p.t.Helper()
	r, err := p.node.Runtimes.PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		p.t.Fatalf("pod status: %v", err)
	}
	return r.Status
}

// ips are the pod's addresses, the primary one first.
func (p *pod) ips() []string {
	p.t.Helper()
	network := p.status().GetNetwork()
	ips := []string{network.GetIp()}
	for _, a := range network.GetAdditionalIps() {
		ips = append(ips, a.Ip)
	}
	return ips
}

// container is a container of one test.
type container struct {
	*pod
	id     string
	config *runtimeapi.ContainerConfig
}

// tryCreate creates a container or tells why not.
func (p *pod) tryCreate(tweaks ...containerTweak) (*container, error) {
	cfg := containerConfig(fmt.Sprintf("c%d", serial.Add(1)), tweaks...)
	r, err := p.node.Runtimes.CreateContainer(p.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cfg, SandboxConfig: p.config})
	if err != nil {
		return nil, err
	}
	return &container{pod: p, id: r.ContainerId, config: cfg}, nil
}

// create creates a container.
func (p *pod) create(tweaks ...containerTweak) *container {
	p.t.Helper()
	c, err := p.tryCreate(tweaks...)
	if err != nil {
		p.t.Fatalf("create container: %v", err)
	}
	return c
}

// start creates a container and starts it.
func (p *pod) start(tweaks ...containerTweak) *container {
	p.t.Helper()
	c := p.create(tweaks...)
	if err := c.start(); err != nil {
		p.t.Fatalf("start container: %v", err)
	}
	return c
}

// says runs a container to its end, which must be a good one, and returns what it wrote to stdout.
func (p *pod) says(tweaks ...containerTweak) string {
	p.t.Helper()
	c := p.start(tweaks...)
	if s := c.ended(); s.ExitCode != 0 {
		p.t.Fatalf("container ended with %d (%s %s):\n%s", s.ExitCode, s.Reason, s.Message, c.rawLog())
	}
	return c.stdout()
}

func (c *container) start() error {
	_, err := c.node.Runtimes.StartContainer(c.ctx, &runtimeapi.StartContainerRequest{ContainerId: c.id})
	return err
}

func (c *container) stop(grace int64) {
	c.t.Helper()
	if _, err := c.node.Runtimes.StopContainer(c.ctx, &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: grace}); err != nil {
		c.t.Fatalf("stop container: %v", err)
	}
}

func (c *container) remove() {
	c.t.Helper()
	if _, err := c.node.Runtimes.RemoveContainer(c.ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.id}); err != nil {
		c.t.Fatalf("remove container: %v", err)
	}
}

func (c *container) status() *runtimeapi.ContainerStatus {
	c.t.Helper()
	r, err := c.node.Runtimes.ContainerStatus(c.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
	if err != nil {
		c.t.Fatalf("container status: %v", err)
	}
	return r.Status
}

// ended waits for the container's end.
func (c *container) ended() (s *runtimeapi.ContainerStatus) {
	c.t.Helper()
	eventually(c.t, 30*time.Second, "container has ended", func() (bool, string) {
		s = c.status()
		return s.State == runtimeapi.ContainerState_CONTAINER_EXITED, s.State.String()
	})
	return s
}

// endsWith waits for the container's end and checks how it was.
func (c *container) endsWith(code int32, reason string) *runtimeapi.ContainerStatus {
	c.t.Helper()
	s := c.ended()
	if s.ExitCode != code || s.Reason != reason {
		c.t.Errorf("ended with %d %q (%s), want %d %q", s.ExitCode, s.Reason, s.Message, code, reason)
	}
	return s
}

// exec runs a command to its end within 10 s.
func (c *container) exec(cmd ...string) (*runtimeapi.ExecSyncResponse, error) {
	return c.node.Runtimes.ExecSync(c.ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: cmd, Timeout: 10})
}

// sh runs a script in the container and returns its stdout; it must succeed.
func (c *container) sh(script string) string {
	c.t.Helper()
	r, err := c.exec("/bin/sh", "-c", script)
	if err != nil {
		c.t.Fatalf("exec %q: %v", script, err)
	}
	if r.ExitCode != 0 {
		c.t.Fatalf("exec %q ended with %d: %s%s", script, r.ExitCode, r.Stdout, r.Stderr)
	}
	return strings.TrimSuffix(string(r.Stdout), "\n")
}

// logPath is where the container's log must be.
func (c *container) logPath() string {
	return filepath.Join(c.pod.config.LogDirectory, c.config.LogPath)
}

func (c *container) rawLog() string {
	b, err := os.ReadFile(c.logPath())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// refused checks that a call failed with a code and, if the runtime is ours, that the message names what is wrong.
func refused(t *testing.T, err error, code codes.Code, names ...string) {
	t.Helper()
	if err == nil {
		t.Error("it was accepted")
		return
	}
	if status.Code(err) != code {
		t.Errorf("code %v, want %v: %v", status.Code(err), code, err)
	}
	for _, name := range names {
		if !other() && !strings.Contains(err.Error(), name) {
			t.Errorf("the message does not name %q: %v", name, err)
		}
	}
}

// equal checks a value that was seen.
func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// contains checks that a text has all the parts.
func contains(t *testing.T, what, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%s does not have %q:\n%s", what, part, text)
		}
	}
}

package blackbox

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// traced is what `criserver trace` prints of a pod.
func traced(t *testing.T, pod string) string {
	t.Helper()
	out, err := n.Command(t.Context(), "trace", pod).CombinedOutput()
	if err != nil {
		t.Errorf("criserver trace: %v: %s", err, out)
	}
	return string(out)
}

// matches checks that a text has a line that each pattern matches.
func matches(t *testing.T, what, text string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile("(?m)" + p).MatchString(text) {
			t.Errorf("%s has no line like %s:\n%s", what, p, text)
		}
	}
}

// Every stage of a pod's life can be seen afterwards, those of plugins and of the shim too.
// rows: D-184
func TestTrace(t *testing.T) {
	ours(t)
	p := newPod(t)
	c := p.start(asleep())
	const ms = `^ +\d+\.\d\d +\d+\.\d\d  `
	for _, name := range []string{p.id[:12], p.config.Metadata.Namespace + "/" + p.config.Metadata.Name} {
		matches(t, "the trace", traced(t, name),
			`^\d{4}-\d\d-\d\d [\d:.]+  RunPodSandbox  blackbox/\S+  `+p.id+`$`, ms+"RunPodSandbox$", ms+"  namespaces$", ms+"  network$", ms+"    bridge$",
			`  CreateContainer  blackbox/\S+  `+c.config.Metadata.Name+"  ", ms+"  root filesystem$", ms+"  create$", ms+"    write spec$", ms+"    process$",
			ms+"StartContainer$", ms+"  execute$")
	}
	c.stop(0)
	if _, err := n.Runtimes.StopPodSandbox(p.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	matches(t, "the trace", traced(t, p.id), ms+"StopContainer$", ms+"StopPodSandbox$", ms+"  release$", ms+"    network$")

	out, err := n.Command(t.Context(), "trace", "nobody").CombinedOutput()
	if err == nil || !strings.Contains(string(out), `nothing is known of a pod "nobody"`) {
		t.Errorf("trace of nobody: %v: %s", err, out)
	}
}

// What goes on right now is seen as well: a plugin looks while it is asked about the pod.
// rows: D-184
func TestTraceOfWhatGoesOn(t *testing.T) {
	ours(t)
	var seen string
	probe := &plugin{}
	probe.object = func(event string) error {
		if event == "RunPodSandbox" {
			seen = traced(t, strings.ToLower(t.Name()))
		}
		return nil
	}
	connect(t, n, probe, "10")
	newPod(t)
	matches(t, "the trace", seen, `RunPodSandbox  \(goes on\)$`, `  network$`, `  plugins  \(goes on\)$`)
}

// A pod that could not be made has left, but what failed is still told, as is the pull for a pod.
// rows: D-184
func TestTraceOfFailure(t *testing.T) {
	ours(t)
	p := newPod(t)
	_, err := n.Images.PullImage(p.ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox}, SandboxConfig: p.config})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.tryCreate(sh("true"), security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody-of-that-name" })); err == nil {
		t.Fatal("a user that there is not was found")
	}
	matches(t, "the trace", traced(t, p.id), `  user  \(.*nobody-of-that-name.*\)$`)
	matches(t, "the trace", traced(t, p.config.Metadata.Name), `  PullImage  `, `  resolve$`)
}

// get of a path on the daemon's debug socket.
func debugGet(t *testing.T, path string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", n.Debug())
	}}}
	r, err := client.Get("http://debug" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Errorf("%s: %s, %v", path, r.Status, err)
	}
	return string(b)
}

// The metrics of operations count what is done, and the socket is for root alone.
// rows: D-180, D-181, D-182
func TestMetricsOfOperations(t *testing.T) {
	ours(t)
	p := newPod(t)
	p.start(asleep())
	p.start(sh("exit 3")).ended()
	_, err := n.Runtimes.StartContainer(p.ctx, &runtimeapi.StartContainerRequest{ContainerId: "no such container"})
	if err == nil {
		t.Fatal("what is not there was started")
	}
	matches(t, "/metrics", debugGet(t, "/metrics"),
		`^criserver_rpc_duration_seconds_count\{code="OK",rpc="RunPodSandbox"\} [1-9]`,
		`^criserver_rpc_duration_seconds_count\{code="NotFound",rpc="StartContainer"\} [1-9]`,
		`^criserver_stage_duration_seconds_bucket\{rpc="RunPodSandbox",stage="network",le="`,
		`^criserver_image_pulls_total\{result="ok"\} [1-9]`,
		`^criserver_image_pull_bytes_total \d`,
		`^criserver_pods\{state="ready"\} [1-9]`,
		`^criserver_containers\{state="running"\} [1-9]`,
		`^criserver_container_ends_total\{reason="Error"\} [1-9]`,
		`^criserver_debts \d`,
		`^criserver_shim_up 1$`,
		`^process_resident_memory_bytes [1-9]`,
		`^go_goroutines [1-9]`)
	contains(t, "/debug/pprof/", debugGet(t, "/debug/pprof/"), "goroutine")
	st, err := os.Stat(n.Debug())
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "mode of the socket", st.Mode().Perm(), 0o660)
}

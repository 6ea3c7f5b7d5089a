package cri

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// refuses makes a call with a deadline and wants its code, with words that name what is at fault.
func refuses(t *testing.T, what string, code codes.Code, text string, call func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got := status.Convert(call(ctx))
	if got.Code() != code || !strings.Contains(got.Message(), text) || len(got.Message()) > 500 {
		t.Errorf("%s: %v %.500q, want %v %q", what, got.Code(), got.Message(), code, text)
	}
}

// directories are one that is empty, one that is not, and a file; none may be changed by the test.
func directories(t *testing.T) (empty, full, file string) {
	t.Helper()
	dir := t.TempDir()
	empty, full = filepath.Join(dir, "empty"), filepath.Join(dir, "full")
	file = filepath.Join(full, "file")
	for _, d := range []string{empty, full} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if names, err := os.ReadDir(empty); err != nil || len(names) > 0 {
			t.Errorf("the empty directory has %v, %v", names, err)
		}
		if names, err := os.ReadDir(full); err != nil || len(names) != 1 {
			t.Errorf("the full directory has %v, %v", names, err)
		}
		if text, err := os.ReadFile(file); err != nil || string(text) != "kept" {
			t.Errorf("the file has %q, %v", text, err)
		}
	})
	return empty, full, file
}

// rows: CK-01, CK-04
func TestCheckpointContainer(t *testing.T) {
	e := newEdge(t)
	empty, _, file := directories(t)
	ok := filepath.Join(empty, "checkpoint.tar")
	for _, tc := range []struct {
		id, location string
		timeout      int64
		code         codes.Code
		text         string
	}{
		{id("c"), ok, 0, codes.Unimplemented, "cannot be checkpointed"},
		{"c", ok, 1 << 62, codes.Unimplemented, "cannot be checkpointed"},
		{"", ok, 0, codes.InvalidArgument, "container_id is missing"},
		{"x", ok, 0, codes.NotFound, "container"},
		{id("8"), ok, 0, codes.NotFound, "still being created"},
		{id("d"), ok, 0, codes.FailedPrecondition, "is created, not running"},
		{id("e"), ok, 0, codes.FailedPrecondition, "is exited, not running"},
		{id("c"), ok, -1, codes.InvalidArgument, "timeout is -1"},
		{id("c"), "", 0, codes.InvalidArgument, "location is missing"},
		{id("c"), "checkpoint.tar", 0, codes.InvalidArgument, `location "checkpoint.tar" is not an absolute path`},
		{id("c"), empty + "/", 0, codes.InvalidArgument, "names no file"},
		{id("c"), empty + "/absent/checkpoint.tar", 0, codes.InvalidArgument, "no such file or directory"},
		{id("c"), file + "/checkpoint.tar", 0, codes.InvalidArgument, "not a directory"},
		{id("c"), "/\x00/checkpoint.tar", 0, codes.InvalidArgument, "location: directory"},
		{id("c"), "/" + strings.Repeat("x", 1<<20) + "/c", 0, codes.InvalidArgument, "name too long"},
	} {
		r := &runtimeapi.CheckpointContainerRequest{ContainerId: tc.id, Location: tc.location, Timeout: tc.timeout}
		refuses(t, tc.text, tc.code, tc.text, func(ctx context.Context) error {
			_, err := e.runtime.CheckpointContainer(ctx, r)
			return err
		})
	}
}

// rows: CK-04, CK-06, CK-07, CK-08
func TestCheckpointPod(t *testing.T) {
	e := newEdge(t)
	empty, full, file := directories(t)
	for _, tc := range []struct {
		change func(*runtimeapi.CheckpointPodRequest)
		code   codes.Code
		text   string
	}{
		{func(r *runtimeapi.CheckpointPodRequest) {}, codes.Unimplemented, "cannot be checkpointed"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.PodSandboxId = "" }, codes.InvalidArgument, "pod_sandbox_id is missing"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.PodSandboxId = "x" }, codes.NotFound, "pod"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.PodSandboxId = id("b") }, codes.FailedPrecondition, "is stopped, not ready"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.Options = map[string]string{"leave": "running"} }, codes.InvalidArgument, `options has the unknown key "leave"`},
		{func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds = nil }, codes.InvalidArgument, "container_ids is empty"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds[1] = "" }, codes.InvalidArgument, "container_ids[1] is missing"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds[1] = "x" }, codes.NotFound, "container"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds[1] = "c" }, codes.InvalidArgument, "is that of container_ids[0] too"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds[1] = id("e") }, codes.FailedPrecondition, "is exited, not running"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.ContainerIds[1] = id("6") }, codes.InvalidArgument, "container_ids[1]: container " + id("6") + " is not of pod"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.OutputPath = "" }, codes.InvalidArgument, "output_path is missing"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.OutputPath = "var" }, codes.InvalidArgument, `output_path "var" is not an absolute path`},
		{func(r *runtimeapi.CheckpointPodRequest) { r.OutputPath += "/absent" }, codes.InvalidArgument, "no such file or directory"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.OutputPath = file }, codes.InvalidArgument, "not a directory"},
		{func(r *runtimeapi.CheckpointPodRequest) { r.OutputPath = full }, codes.InvalidArgument, `is not empty, it has "file"`},
	} {
		r := &runtimeapi.CheckpointPodRequest{PodSandboxId: id("a"), OutputPath: empty, ContainerIds: []string{id("c"), id("9")}}
		tc.change(r)
		refuses(t, tc.text, tc.code, tc.text, func(ctx context.Context) error {
			_, err := e.runtime.CheckpointPod(ctx, r)
			return err
		})
	}
	_, err := e.runtime.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: id("a"), OutputPath: empty, ContainerIds: []string{id("c")}})
	refuses(t, "without a deadline", codes.InvalidArgument, "no deadline", func(context.Context) error { return err })
}

// rows: CK-04, CK-10, CK-12
func TestRestorePod(t *testing.T) {
	e := newEdge(t)
	_, full, file := directories(t)
	container := func(name string) *runtimeapi.ContainerConfig {
		return &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: "busybox"}}
	}
	for _, tc := range []struct {
		change func(*runtimeapi.RestorePodRequest)
		code   codes.Code
		text   string
	}{
		{func(r *runtimeapi.RestorePodRequest) {}, codes.Unimplemented, "cannot be restored"},
		{func(r *runtimeapi.RestorePodRequest) { r.RuntimeHandler = "special" }, codes.Unimplemented, "cannot be restored"},
		{func(r *runtimeapi.RestorePodRequest) { r.RuntimeHandler = "nope" }, codes.InvalidArgument, `runtime_handler "nope" is not configured`},
		{func(r *runtimeapi.RestorePodRequest) { r.Options = map[string]string{"tcp": "closed"} }, codes.InvalidArgument, `options has the unknown key "tcp"`},
		{func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = "" }, codes.InvalidArgument, "checkpoint_path is missing"},
		{func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = "var" }, codes.InvalidArgument, `checkpoint_path "var" is not an absolute path`},
		{func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath += "/absent" }, codes.InvalidArgument, "no such file or directory"},
		{func(r *runtimeapi.RestorePodRequest) { r.CheckpointPath = file }, codes.InvalidArgument, "not a directory"},
		{func(r *runtimeapi.RestorePodRequest) { r.Config = nil }, codes.InvalidArgument, "config is missing"},
		{func(r *runtimeapi.RestorePodRequest) { r.Config.Metadata.Uid = "" }, codes.InvalidArgument, "config: metadata.uid: is missing"},
		{func(r *runtimeapi.RestorePodRequest) { r.Config.LogDirectory = "logs" }, codes.InvalidArgument, "config: log_directory"},
		{func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs = nil }, codes.InvalidArgument, "container_configs is empty"},
		{func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[1].Metadata.Name = "" }, codes.InvalidArgument, "container_configs[1]: metadata.name: is missing"},
		{func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[1].Metadata.Name = "c" }, codes.InvalidArgument, `container_configs[1].metadata.name "c" is that of container_configs[0] too`},
		{func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[1].Image.RuntimeHandler = "nope" }, codes.InvalidArgument, `container_configs[1].image.runtime_handler "nope"`},
		{func(r *runtimeapi.RestorePodRequest) { r.ContainerConfigs[1].LogPath = "../log" }, codes.InvalidArgument, "container_configs[1]: log_path"},
	} {
		r := &runtimeapi.RestorePodRequest{
			CheckpointPath:   full,
			Config:           &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "ns", Uid: "u"}, LogDirectory: "/var/log"},
			ContainerConfigs: []*runtimeapi.ContainerConfig{container("c"), container("d")},
		}
		tc.change(r)
		refuses(t, tc.text, tc.code, tc.text, func(ctx context.Context) error {
			_, err := e.runtime.RestorePod(ctx, r)
			return err
		})
	}
	_, err := e.runtime.RestorePod(t.Context(), &runtimeapi.RestorePodRequest{})
	refuses(t, "without a deadline", codes.InvalidArgument, "no deadline", func(context.Context) error { return err })
}

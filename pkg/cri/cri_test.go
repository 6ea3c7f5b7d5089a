package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/imagesvc"
	"github.com/criserver/criserver/pkg/libct"
	"github.com/criserver/criserver/pkg/sandbox"
)

// rows: D-51, D-53, GAP-29, GAP-35
func TestErrorCodes(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{nil, codes.OK, ""},
		{fmt.Errorf("pod x: %w", errdefs.ErrNotFound), codes.NotFound, "pod x: not found"},
		{fmt.Errorf("f: %w", errdefs.ErrInvalidArgument), codes.InvalidArgument, "f: invalid argument"},
		{errdefs.ErrFailedPrecondition, codes.FailedPrecondition, "failed precondition"},
		{errdefs.ErrAlreadyExists, codes.AlreadyExists, "already exists"},
		{errdefs.ErrUnavailable, codes.Unavailable, "unavailable"},
		{errdefs.ErrNotImplemented, codes.Unimplemented, "not implemented"},
		{errdefs.ErrResourceExhausted, codes.ResourceExhausted, "resource exhausted"},
		{errdefs.ErrPermissionDenied, codes.PermissionDenied, "permission denied"},
		{errdefs.ErrUnauthenticated, codes.Unauthenticated, "unauthorized"},
		{errdefs.ErrInternal, codes.Internal, "internal"},
		{fmt.Errorf("pull x: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "pull x: context deadline exceeded"},
		{context.Canceled, codes.Canceled, "context canceled"},
		{errors.Join(errdefs.ErrUnavailable, context.DeadlineExceeded), codes.DeadlineExceeded, "unavailable\ncontext deadline exceeded"},
		{errors.New("disk on fire"), codes.Unknown, "disk on fire"},
		{fmt.Errorf("start c: %w", &libct.StartError{Reason: "exec /x: no such file"}), codes.Unknown, "start c: exec /x: no such file"},
		{fmt.Errorf("%w: %w", &libct.StartError{Reason: "no file"}, errdefs.ErrNotFound), codes.Unknown, "no file: not found"},
		{fmt.Errorf("create: %w", &spec.RROUnsupportedError{Err: fmt.Errorf("mounts[0]: %w", errdefs.ErrInvalidArgument)}), codes.InvalidArgument,
			"RROUnsupported: create: mounts[0]: invalid argument"},
		{fmt.Errorf("dial: %w", imagesvc.ErrRegistryUnavailable), codes.Unknown, "RegistryUnavailable: dial: " + imagesvc.ErrRegistryUnavailable.Error()},
		{fmt.Errorf("%w: %w", imagesvc.ErrRegistryUnavailable, context.DeadlineExceeded), codes.Unknown,
			"RegistryUnavailable: " + imagesvc.ErrRegistryUnavailable.Error() + ": context deadline exceeded"},
		{status.Error(codes.OutOfRange, "as it is"), codes.OutOfRange, "as it is"},
	} {
		got := status.Convert(toStatus(tc.err))
		if got.Code() != tc.code || got.Message() != tc.text {
			t.Errorf("%v: %v %q, want %v %q", tc.err, got.Code(), got.Message(), tc.code, tc.text)
		}
	}
}

// rows, GAP-29, IM-04, K-04
func TestRequests(t *testing.T) {
	e := newEdge(t)
	long := strings.Repeat("x", 1<<20)
	pod := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p"}}
	container := &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "busybox"}}
	for _, tc := range []struct {
		request
		code codes.Code
		text string // part of the error
		call string // of the heart
	}{
		{run(&runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "special"}), codes.OK, "", "RunPod p special"},
		{run(&runtimeapi.RunPodSandboxRequest{}), codes.InvalidArgument, "config is missing", ""},
		{stopPod("x"), codes.OK, "", "StopPod x"},
		{stopPod(""), codes.InvalidArgument, "pod_sandbox_id is missing", ""},
		{stopPod(long), codes.OK, "", ""},
		{removePod("x"), codes.OK, "", "RemovePod x"},
		{removePod(""), codes.InvalidArgument, "pod_sandbox_id is missing", ""},
		{podStatusOf(id("a")), codes.OK, "", ""},
		{podStatusOf("a"), codes.OK, "", ""},
		{podStatusOf("x"), codes.NotFound, "pod", ""},
		{podStatusOf(id("f")), codes.NotFound, "still being created", ""},
		{podStatusOf(long), codes.NotFound, "1048576 characters", ""},
		{podStatusOf(""), codes.InvalidArgument, "pod_sandbox_id is missing", ""},
		{create(id("a"), container), codes.OK, "", "CreateContainer " + id("a") + " c"},
		{create("", container), codes.InvalidArgument, "pod_sandbox_id is missing", ""},
		{create(id("a"), nil), codes.InvalidArgument, "config is missing", ""},
		{create(id("a"), &runtimeapi.ContainerConfig{}), codes.InvalidArgument, "config.image.image is missing", ""},
		{create(id("a"), &runtimeapi.ContainerConfig{Image: &runtimeapi.ImageSpec{Image: "i", RuntimeHandler: "nope"}}), codes.InvalidArgument, `config.image.runtime_handler "nope"`, ""},
		{create(id("a"), &runtimeapi.ContainerConfig{Image: container.Image, Mounts: []*runtimeapi.Mount{{Image: &runtimeapi.ImageSpec{Image: "i", RuntimeHandler: "nope"}}}}),
			codes.InvalidArgument, `config.mounts[0].image.runtime_handler "nope"`, ""},
		{start("x"), codes.OK, "", "StartContainer x"},
		{start(""), codes.InvalidArgument, "container_id is missing", ""},
		{stop("x", 5), codes.OK, "", "StopContainer x 5s"},
		{stop("x", math.MaxInt64), codes.OK, "", "StopContainer x 2562047h47m16s"},
		{stop("x", -1), codes.InvalidArgument, "timeout is -1", ""},
		{stop("", 0), codes.InvalidArgument, "container_id is missing", ""},
		{remove("x"), codes.OK, "", "RemoveContainer x"},
		{remove(""), codes.InvalidArgument, "container_id is missing", ""},
		{containerStatusOf("x"), codes.NotFound, "container", ""},
		{containerStatusOf(id("8")), codes.NotFound, "still being created", ""},
		{containerStatusOf(""), codes.InvalidArgument, "container_id is missing", ""},
		{update("x", &runtimeapi.LinuxContainerResources{CpuShares: 7}), codes.OK, "", "UpdateContainer x 7"},
		{updatePod("", nil, nil), codes.InvalidArgument, "pod_sandbox_id", ""},
		{updatePod("x", &runtimeapi.LinuxContainerResources{CpuShares: 7}, &runtimeapi.LinuxContainerResources{CpuShares: 8}), codes.OK, "", "UpdatePod x 7 8"},
		{update("x", nil), codes.InvalidArgument, "linux is missing", ""},
		{update("", nil), codes.InvalidArgument, "container_id is missing", ""},
		{reopen("x"), codes.OK, "", "ReopenLog x"},
		{reopen(""), codes.InvalidArgument, "container_id is missing", ""},
		{execSync("x", 3, "ls", "-l"), codes.OK, "", `ExecSync x ["ls" "-l"] 3s`},
		{execSync("x", 0), codes.InvalidArgument, "cmd is empty", ""},
		{execSync("x", 0, ""), codes.InvalidArgument, "cmd is empty", ""},
		{execSync("x", -1, "ls"), codes.InvalidArgument, "timeout is -1", ""},
		{execSync("x", 0, strings.Repeat("x", 7<<20)), codes.InvalidArgument, "the kernel takes at most", ""},
		{execSync("", 0, "ls"), codes.InvalidArgument, "container_id is missing", ""},
		{exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"ls"}, Stdout: true}), codes.OK, "", ""},
		{exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"ls"}, Stdout: true, Stderr: true, Tty: true}), codes.InvalidArgument, "tty and stderr", ""},
		{exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"ls"}}), codes.InvalidArgument, "one of stdin, stdout and stderr", ""},
		{exec(&runtimeapi.ExecRequest{ContainerId: "c", Stdout: true}), codes.InvalidArgument, "cmd is empty", ""},
		{exec(&runtimeapi.ExecRequest{ContainerId: "d", Cmd: []string{"ls"}, Stdout: true}), codes.FailedPrecondition, "is created, not running", ""},
		{exec(&runtimeapi.ExecRequest{ContainerId: "e", Cmd: []string{"ls"}, Stdout: true}), codes.FailedPrecondition, "is exited, not running", ""},
		{exec(&runtimeapi.ExecRequest{ContainerId: "x", Cmd: []string{"ls"}, Stdout: true}), codes.NotFound, "container", ""},
		{exec(&runtimeapi.ExecRequest{}), codes.InvalidArgument, "container_id is missing", ""},
		{attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true, Stderr: true}), codes.OK, "", ""},
		{attach(&runtimeapi.AttachRequest{ContainerId: "d", Stdout: true}), codes.OK, "", ""},
		{attach(&runtimeapi.AttachRequest{ContainerId: "9", Stdout: true, Tty: true}), codes.OK, "", ""},
		{attach(&runtimeapi.AttachRequest{ContainerId: "9", Stdout: true}), codes.InvalidArgument, "tty is false", ""},
		{attach(&runtimeapi.AttachRequest{ContainerId: "9", Stdin: true, Tty: true}), codes.InvalidArgument, "stdin is true", ""},
		{attach(&runtimeapi.AttachRequest{ContainerId: "c", Stdout: true, Tty: true}), codes.InvalidArgument, "tty is true", ""},
		{attach(&runtimeapi.AttachRequest{ContainerId: "e", Stdout: true}), codes.FailedPrecondition, "is exited", ""},
		{attach(&runtimeapi.AttachRequest{ContainerId: "x"}), codes.NotFound, "container", ""},
		{attach(&runtimeapi.AttachRequest{}), codes.InvalidArgument, "container_id is missing", ""},
		{forward("a", 80, 443), codes.OK, "", ""},
		{forward("a"), codes.OK, "", ""},
		{forward("a", 0), codes.InvalidArgument, "port[0] is 0", ""},
		{forward("a", 80, 65536), codes.InvalidArgument, "port[1] is 65536", ""},
		{forward("a", make([]int32, 1000)...), codes.InvalidArgument, "port has 1000 entries", ""},
		{forward("b", 80), codes.FailedPrecondition, "is stopped, not ready", ""},
		{forward("x", 80), codes.NotFound, "pod", ""},
		{forward(""), codes.InvalidArgument, "pod_sandbox_id is missing", ""},
		{statsOf("x"), codes.OK, "", "ContainerStats x"},
		{statsOf(""), codes.InvalidArgument, "container_id is missing", ""},
		{podStats("x"), codes.OK, "", "PodStats x"},
		{podStats(""), codes.InvalidArgument, "pod_sandbox_id is missing", ""},
		{imageStatus(nil), codes.InvalidArgument, "image.image is missing", ""},
		{imageStatus(&runtimeapi.ImageSpec{Image: "absent"}), codes.OK, "", ""},
		{imageStatus(&runtimeapi.ImageSpec{Image: "absent", RuntimeHandler: "nope"}), codes.InvalidArgument, `image.runtime_handler "nope"`, ""},
		{removeImage(nil), codes.InvalidArgument, "image.image is missing", ""},
		{removeImage(&runtimeapi.ImageSpec{Image: "absent"}), codes.OK, "", ""},
		{pull(nil, nil), codes.InvalidArgument, "image.image is missing", ""},
		{pull(&runtimeapi.ImageSpec{Image: "i", RuntimeHandler: "nope"}, nil), codes.InvalidArgument, `image.runtime_handler "nope"`, ""},
	} {
		resp, err := tc.request.call(t.Context(), e)
		got := status.Convert(err)
		if got.Code() != tc.code || !strings.Contains(got.Message(), tc.text) || len(got.Message()) > 500 {
			t.Errorf("%s: %v %.500q, want %v %q", tc.name, got.Code(), got.Message(), tc.code, tc.text)
		}
		calls := e.sandboxes.calls()
		if want := tc.call; want == "" && len(calls) > 0 || want != "" && !slices.Equal(calls, []string{want}) {
			t.Errorf("%s: calls %q, want %q (%v)", tc.name, calls, want, resp)
		}
	}
}

// What the heart says comes through with its code; stops and removals of what is not there succeed.
// rows: D-19, D-21, GAP-29
func TestErrorsOfTheHeart(t *testing.T) {
	e := newEdge(t)
	for _, tc := range []struct {
		err  error
		want func(forgiving bool) codes.Code
	}{
		{fmt.Errorf("gone: %w", errdefs.ErrNotFound), func(forgiving bool) codes.Code {
			if forgiving {
				return codes.OK
			}
			return codes.NotFound
		}},
		{errdefs.ErrFailedPrecondition, func(bool) codes.Code { return codes.FailedPrecondition }},
		{context.DeadlineExceeded, func(bool) codes.Code { return codes.DeadlineExceeded }},
		{errors.New("disk"), func(bool) codes.Code { return codes.Unknown }},
	} {
		e.sandboxes.err, e.images.err = tc.err, tc.err
		for _, r := range []struct {
			request
			forgiving bool
		}{
			{stopPod("x"), true}, {removePod("x"), true}, {stop("x", 0), true}, {remove("x"), true}, {removeImage(&runtimeapi.ImageSpec{Image: "x"}), true},
			{start("x"), false}, {update("x", &runtimeapi.LinuxContainerResources{}), false}, {reopen("x"), false}, {execSync("x", 1, "ls"), false},
			{statsOf("x"), false}, {podStats("x"), false}, {pull(&runtimeapi.ImageSpec{Image: "x"}, nil), false},
			{create("x", &runtimeapi.ContainerConfig{Image: &runtimeapi.ImageSpec{Image: "x"}}), false},
		} {
			if _, err := r.call(t.Context(), e); status.Code(err) != tc.want(r.forgiving) {
				t.Errorf("%s with %v: %v", r.name, tc.err, err)
			}
		}
	}
}

func TestPanicIsInternal(t *testing.T) {
	e := newEdge(t)
	e.sandboxes.panics = true
	_, err := start("x").call(t.Context(), e)
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "goroutine") {
		t.Errorf("error %v", err)
	}
	if log := e.log.String(); !strings.Contains(log, "a fault of the heart") || !strings.Contains(log, "start_container.go") {
		t.Errorf("the log has no stack: %s", log)
	}
	e.sandboxes.panics = false
	if _, err := start("x").call(t.Context(), e); err != nil {
		t.Errorf("after the panic: %v", err)
	}
}

// The log has a line for each RPC with the object's ID, and nothing secret.
func TestLog(t *testing.T) {
	e := newEdge(t)
	start("abc").call(t.Context(), e)
	auth := &runtimeapi.AuthConfig{Username: "hunter2", Password: "hunter2", Auth: "hunter2", IdentityToken: "hunter2", RegistryToken: "hunter2", ServerAddress: "s"}
	if _, err := pull(&runtimeapi.ImageSpec{Image: "busybox"}, auth).call(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	create("p", e.sandboxes.containers[0].Config).call(t.Context(), e)
	execSync("x", 0, "echo", "hunter2").call(t.Context(), e)
	log := e.log.String()
	if strings.Contains(log, "hunter2") {
		t.Errorf("a secret is in the log:\n%s", log)
	}
	for _, want := range []string{"object=abc rpc=StartContainer", "object=busybox rpc=PullImage", "code=OK", "took="} {
		if !strings.Contains(log, want) {
			t.Errorf("%q is not in the log:\n%s", want, log)
		}
	}
	if want := (imagesvc.Auth{Username: "hunter2", Password: "hunter2", Auth: "hunter2", IdentityToken: "hunter2", RegistryToken: "hunter2", ServerAddress: "s"}); e.images.auth != want {
		t.Errorf("auth %+v", e.images.auth)
	}
}

// rows, GAP-39
func TestVersionStatusConfig(t *testing.T) {
	e := newEdge(t)
	version, err := e.runtime.Version(t.Context(), &runtimeapi.VersionRequest{})
	if err != nil || !proto.Equal(version, &runtimeapi.VersionResponse{Version: "0.1.0", RuntimeName: "criserver", RuntimeVersion: "1.2.3", RuntimeApiVersion: "v1"}) {
		t.Errorf("version %v, %v", version, err)
	}
	resp, err := e.runtime.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if c := resp.Status.Conditions; len(c) != 3 || c[0].Type != "RuntimeReady" || !c[0].Status || c[1].Type != "NetworkReady" || !c[1].Status || c[1].Reason != "" ||
		c[2].Type != "PodNetworksReady" || !c[2].Status {
		t.Errorf("conditions %v", c)
	}
	if h := resp.RuntimeHandlers; len(h) != 2 || h[0].Name != "" || h[1].Name != "special" || !h[1].Features.RecursiveReadOnlyMounts || !h[0].Features.UserNamespaces {
		t.Errorf("handlers %v", h)
	}
	if !resp.Features.SupplementalGroupsPolicy || !resp.Features.MountOptions || !resp.Features.UserNamespacesHostNetwork || resp.Info != nil {
		t.Errorf("features %v, info %v", resp.Features, resp.Info)
	}

	e.sandboxes.damaged = []string{"a/1", "a/2", "a/3", "a/4", "a/5", "a/6", "a/7", "a/8", "a/9", "b/1", "b/2"}
	e.network.err = errors.New(`no "configuration"`)
	resp, err = e.runtime.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if c := resp.Status.Conditions[1]; c.Status || c.Reason != "NetworkPluginNotReady" || c.Message != `no "configuration"` {
		t.Errorf("condition %v", c)
	}
	if c := resp.Status.Conditions[2]; c.Status || c.Reason != "PodNetworkDamaged" || !strings.Contains(c.Message, "of 11 pods: a/1, ") || !strings.Contains(c.Message, "b/1, ...") {
		t.Errorf("condition %v", c)
	}
	info := parseInfo(t, resp.Info)
	config := info["config"].(map[string]any)
	for key, want := range map[string]any{"stateDir": "/run/criserver", "networkPluginConfDir": "/etc/cni/net.d", "sandboxImage": sandboxImage,
		"maxContainerLogLineSize": 16384., "criserver": map[string]any{"listen": "here"}} {
		if !reflect.DeepEqual(config[key], want) {
			t.Errorf("config.%s is %v, want %v", key, config[key], want)
		}
	}
	if info["lastCNILoadStatus"] != `no "configuration"` || !strings.HasPrefix(info["golang"].(string), "go1.") || info["cniconfig"] == nil {
		t.Errorf("info %v", info)
	}

	for systemd, want := range map[bool]runtimeapi.CgroupDriver{false: runtimeapi.CgroupDriver_CGROUPFS, true: runtimeapi.CgroupDriver_SYSTEMD} {
		e.Server.options.CgroupSystemd = systemd
		if resp, err := e.runtime.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{}); err != nil || resp.Linux.CgroupDriver != want {
			t.Errorf("systemd %t: %v, %v", systemd, resp, err)
		}
	}
	if _, err := e.runtime.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{}); err != nil {
		t.Error(err)
	}
}

func parseInfo(t *testing.T, info map[string]string) map[string]any {
	t.Helper()
	parsed := map[string]any{}
	for key, text := range info {
		var value any
		if err := json.Unmarshal([]byte(text), &value); err != nil {
			t.Fatalf("info %s is no JSON: %v: %s", key, err, text)
		}
		parsed[key] = value
	}
	return parsed
}

// Every field of what is reported is filled, but for those of other systems.
// rows: GAP-27
func TestStatusesAreComplete(t *testing.T) {
	e := newEdge(t)
	pod, err := e.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id("a"), Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	container, err := e.runtime.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id("e"), Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	stopped, err := e.runtime.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id("b")})
	if err != nil {
		t.Fatal(err)
	}
	if stopped.Info != nil || stopped.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("stopped pod %v", stopped)
	}
	list, err := e.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id("e")}})
	if err != nil {
		t.Fatal(err)
	}
	images, err := e.image.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: imageID}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	fs, err := e.image.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string]proto.Message{"pod": pod, "container": container, "list": list, "image": images, "fs": fs} {
		// Enums whose zero is what the test's objects are, fields of Windows, and a name beside a number.
		except := []string{"windows", "status.state", "username", "user_specified_image", "runtime_handler", "image_ref"}
		for _, empty := range emptyFields(m.ProtoReflect(), "", 3) {
			if !slices.ContainsFunc(except, func(e string) bool { return strings.HasSuffix(empty, e) }) {
				t.Errorf("%s: %s is empty", name, empty)
			}
		}
	}
	if c := container.Status; c.ImageId != imageID || list.Containers[0].ImageId != imageID || images.Image.Id != imageID ||
		c.Image.Image != "busybox" || c.CreatedAt != 2e9 || c.User.Linux.Uid != 1000 || !slices.Equal(c.User.Linux.SupplementalGroups, []int64{1001, 5}) ||
		c.Mounts[0].ImageSubPath != "sub" || c.Reason != "OOMKilled" || c.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("container status %v", c)
	}
	if n := pod.Status.Network; n.Ip != "10.0.0.1" || len(n.AdditionalIps) != 2 || n.AdditionalIps[0].Ip != "fd00::1" {
		t.Errorf("network %v", n)
	}
	if len(pod.ContainersStatuses) != 4 || time.Since(time.Unix(0, pod.Timestamp)) > time.Minute {
		t.Errorf("%d containers at %d", len(pod.ContainersStatuses), pod.Timestamp)
	}
	info := parseInfo(t, pod.Info)["info"].(map[string]any)
	netns := info["runtimeSpec"].(map[string]any)["linux"].(map[string]any)["namespaces"].([]any)[0].(map[string]any)["path"]
	if info["pid"] != 42. || info["netNsClosed"] != false || info["netNamespaceClosed"] != false || info["cniResult"] == nil || netns != "/run/netns/a" {
		t.Errorf("pod info %v", info)
	}
	info = parseInfo(t, container.Info)["info"].(map[string]any)
	if info["pid"] != 77. || info["sandboxID"] != id("a") || info["privileged"] != false || info["runtimeSpec"].(map[string]any)["hostname"] != "of-"+id("e") {
		t.Errorf("container info %v", info)
	}
	info = parseInfo(t, images.Info)["info"].(map[string]any)
	if cmd := info["imageSpec"].(map[string]any)["config"].(map[string]any)["Cmd"]; !reflect.DeepEqual(cmd, []any{"sh"}) {
		t.Errorf("image info %v", info)
	}
}

// emptyFields names the fields of a message that are not set, to a depth.
func emptyFields(m protoreflect.Message, path string, depth int) (empty []string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := path + "." + string(f.Name())
		switch {
		case !m.Has(f):
			empty = append(empty, name)
		case f.IsMap() || f.Kind() != protoreflect.MessageKind || depth == 0:
		case f.IsList():
			if f.Name() != "mounts" && f.Name() != "containers_statuses" {
				empty = append(empty, emptyFields(m.Get(f).List().Get(0).Message(), name, depth-1)...)
			}
		case f.Name() != "resources" && f.Name() != "linux" && f.Name() != "namespaces":
			empty = append(empty, emptyFields(m.Get(f).Message(), name, depth-1)...)
		}
	}
	return empty
}

func TestImageOfStatus(t *testing.T) {
	e := newEdge(t)
	for _, tc := range []struct{ asked, user, want string }{
		{imageID, "busybox", "busybox"},
		{imageID, "", "docker.io/library/busybox:latest"},
		{strings.TrimPrefix(imageID, "sha256:"), "", "docker.io/library/busybox:latest"},
		{"busybox:1", "", "busybox:1"},
	} {
		c := e.sandboxes.containers[0]
		config := proto.Clone(c.Config).(*runtimeapi.ContainerConfig)
		config.Image.Image, config.Image.UserSpecifiedImage = tc.asked, tc.user
		c.Config = config
		if got := e.Server.containerStatus(c).Image.Image; got != tc.want {
			t.Errorf("asked %q by user as %q: %q, want %q", tc.asked, tc.user, got, tc.want)
		}
	}
	// The image was removed meanwhile, with the container running on.
	e.images.images = nil
	c := e.sandboxes.containers[0]
	c.Config = &runtimeapi.ContainerConfig{Image: &runtimeapi.ImageSpec{Image: imageID}}
	if got := e.Server.containerStatus(c).Image.Image; got != imageID {
		t.Errorf("image that is gone: %q", got)
	}
}

// rows: T-10, T-11, T-12, T-26
func TestFilters(t *testing.T) {
	e := newEdge(t)
	e.sandboxes.pods, e.sandboxes.containers = e.sandboxes.pods[:2], e.sandboxes.containers[:5] // the heart lists nothing that is being created
	exited := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_EXITED}
	for _, tc := range []struct {
		f    *runtimeapi.ContainerFilter
		want string
	}{
		{nil, "cde79"},
		{&runtimeapi.ContainerFilter{}, "cde79"},
		{&runtimeapi.ContainerFilter{Id: id("d")}, "d"},
		{&runtimeapi.ContainerFilter{Id: "dd"}, "d"},
		{&runtimeapi.ContainerFilter{Id: "x"}, ""},
		{&runtimeapi.ContainerFilter{PodSandboxId: "a"}, "cde9"},
		{&runtimeapi.ContainerFilter{PodSandboxId: id("b")}, "7"},
		{&runtimeapi.ContainerFilter{State: exited}, "e7"},
		{&runtimeapi.ContainerFilter{State: &runtimeapi.ContainerStateValue{}}, "d"},
		{&runtimeapi.ContainerFilter{State: exited, PodSandboxId: "a"}, "e"},
		{&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"all": "yes"}}, "cde79"},
		{&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"all": "yes", "container": "c"}}, "c"},
		{&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"absent": ""}}, ""},
		{&runtimeapi.ContainerFilter{Id: "c", LabelSelector: map[string]string{"container": "d"}}, ""},
	} {
		list, err := e.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: tc.f})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, c := range list.Containers {
			got += c.Id[:1]
		}
		stream, err := e.runtime.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{Filter: tc.f})
		if err != nil {
			t.Fatal(err)
		}
		streamed := ""
		for _, c := range collect(t, stream, (*runtimeapi.StreamContainersResponse).GetContainers) {
			streamed += c.Id[:1]
		}
		if got != tc.want || streamed != tc.want {
			t.Errorf("%v: list %q, stream %q, want %q", tc.f, got, streamed, tc.want)
		}
	}
	for _, tc := range []struct {
		f    *runtimeapi.PodSandboxFilter
		want string
	}{
		{nil, "ab"},
		{&runtimeapi.PodSandboxFilter{Id: "b"}, "b"},
		{&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{}}, "a"},
		{&runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}}, "b"},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"pod": "a", "all": "yes"}}, "a"},
		{&runtimeapi.PodSandboxFilter{Id: "a", LabelSelector: map[string]string{"pod": "b"}}, ""},
	} {
		list, err := e.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: tc.f})
		if err != nil {
			t.Fatal(err)
		}
		stream, err := e.runtime.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{Filter: tc.f})
		if err != nil {
			t.Fatal(err)
		}
		got, streamed := "", ""
		for _, p := range list.Items {
			got += p.Id[:1]
		}
		for _, p := range collect(t, stream, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes) {
			streamed += p.Id[:1]
		}
		if got != tc.want || streamed != tc.want {
			t.Errorf("%v: list %q, stream %q, want %q", tc.f, got, streamed, tc.want)
		}
	}
}

// collect reads a streamed list; no message may be empty.
func collect[Resp, Item any](t testing.TB, stream grpc.ServerStreamingClient[Resp], items func(*Resp) []Item) (all []Item) {
	t.Helper()
	for {
		resp, err := stream.Recv()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(items(resp)) == 0 {
			t.Fatal("a message without items")
		}
		all = append(all, items(resp)...)
	}
}

// rows
func TestStatsLists(t *testing.T) {
	e := newEdge(t)
	list, err := e.runtime.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{
		Filter: &runtimeapi.ContainerStatsFilter{Id: "c", PodSandboxId: "a", LabelSelector: map[string]string{"all": "yes"}}})
	if err != nil || len(list.Stats) != 1 || list.Stats[0].Attributes.Id != id("c") {
		t.Errorf("%v, %v", list, err)
	}
	stream, err := e.runtime.StreamContainerStats(t.Context(), &runtimeapi.StreamContainerStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(collect(t, stream, (*runtimeapi.StreamContainerStatsResponse).GetContainerStats)); n != len(e.sandboxes.containers) {
		t.Errorf("%d stats", n)
	}
	pods, err := e.runtime.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{
		Filter: &runtimeapi.PodSandboxStatsFilter{Id: "a", LabelSelector: map[string]string{"pod": "a"}}})
	if err != nil || len(pods.Stats) != 1 || pods.Stats[0].Attributes.Id != id("a") {
		t.Errorf("%v, %v", pods, err)
	}
	podStream, err := e.runtime.StreamPodSandboxStats(t.Context(), &runtimeapi.StreamPodSandboxStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if n := len(collect(t, podStream, (*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats)); n != len(e.sandboxes.pods) {
		t.Errorf("%d stats", n)
	}
}

// rows: I-01, I-02, IM-10
func TestImages(t *testing.T) {
	e := newEdge(t)
	for ref, want := range map[string]int{"": 2, imageID: 1, "docker.io/library/busybox:latest": 1, "absent": 0} {
		filter := &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: ref}}
		list, err := e.image.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: filter})
		if err != nil || len(list.Images) != want {
			t.Errorf("filter %q: %v, %v", ref, list, err)
		}
		stream, err := e.image.StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		if n := len(collect(t, stream, (*runtimeapi.StreamImagesResponse).GetImages)); n != want {
			t.Errorf("filter %q: %d streamed", ref, n)
		}
	}
	list, err := e.image.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil || list.Images[0].Uid.GetValue() != 1000 || list.Images[0].Username != "" || list.Images[1].Uid != nil || list.Images[1].Username != "nobody" {
		t.Errorf("users of images: %v, %v", list, err)
	}
	absent, err := e.image.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "absent"}})
	if err != nil || absent.Image != nil {
		t.Errorf("absent image: %v, %v", absent, err)
	}
	pulled, err := e.image.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "busybox"}})
	if err != nil || pulled.ImageRef != imageID {
		t.Errorf("pull: %v, %v", pulled, err)
	}
}

// Filesystems are told apart by their mountpoints, and one is told as one.
// rows: IM-26
func TestImageFsInfo(t *testing.T) {
	e := newEdge(t)
	usage := func(path string, at int64, bytes, inodes uint64) []*runtimeapi.FilesystemUsage {
		return []*runtimeapi.FilesystemUsage{{Timestamp: at, FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: path},
			UsedBytes: &runtimeapi.UInt64Value{Value: bytes}, InodesUsed: &runtimeapi.UInt64Value{Value: inodes}}}
	}
	for device, want := range map[uint64]*runtimeapi.ImageFsInfoResponse{
		1: {ImageFilesystems: usage("/var/lib/layers", 1e9, 4, 6), ContainerFilesystems: usage("/var/lib/layers", 1e9, 4, 6)},
		2: {ImageFilesystems: usage("/var/lib/layers", 1e9, 1, 2), ContainerFilesystems: usage("/var/lib/upper", 2e9, 3, 4)},
	} {
		e.sandboxes.device = device
		if got, err := e.image.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{}); err != nil || !proto.Equal(got, want) {
			t.Errorf("writable layers on device %d: %v (%v), want %v", device, got, err, want)
		}
	}
}

// Lists that no message can carry are refused with advice, and streamed whole.
func TestLargeLists(t *testing.T) {
	e := newEdge(t)
	big := e.sandboxes.containers[0]
	big.Config = proto.Clone(big.Config).(*runtimeapi.ContainerConfig)
	big.Config.Annotations = map[string]string{"big": strings.Repeat("x", 10<<10)}
	e.sandboxes.containers = nil
	for i := range 2000 {
		big.ID = fmt.Sprintf("%064x", i)
		e.sandboxes.containers = append(e.sandboxes.containers, big)
	}
	_, err := e.runtime.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "use a filter or StreamContainers") {
		t.Errorf("error %v", err)
	}
	stream, err := e.runtime.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, c := range collect(t, stream, (*runtimeapi.StreamContainersResponse).GetContainers) {
		seen[c.Id] = true
	}
	if len(seen) != 2000 {
		t.Errorf("%d containers were streamed", len(seen))
	}
}

// rows: R-17
func TestExecSyncOutputFits(t *testing.T) {
	e := newEdge(t)
	for _, tc := range []struct{ out, err, wantOut, wantErr int }{
		{5, 3, 5, 3},
		{16 << 20, 0, maxOutput, 0},
		{16 << 20, 10, maxOutput - 10, 10},
		{10, 16 << 20, 10, maxOutput - 10},
		{16 << 20, 16 << 20, maxOutput / 2, maxOutput / 2},
	} {
		e.sandboxes.exec = sandbox.ExecResult{Stdout: make([]byte, tc.out), Stderr: make([]byte, tc.err), ExitCode: 4}
		resp, err := e.runtime.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: "x", Cmd: []string{"yes"}})
		if err != nil || len(resp.Stdout) != tc.wantOut || len(resp.Stderr) != tc.wantErr || resp.ExitCode != 4 {
			t.Errorf("%d and %d bytes: %d and %d, exit code %d, %v", tc.out, tc.err, len(resp.GetStdout()), len(resp.GetStderr()), resp.GetExitCode(), err)
		}
	}
}

// rows: E-04, E-05, E-06
func TestEvents(t *testing.T) {
	e := newEdge(t)
	subscribe := func() grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse] {
		stream, err := e.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		return stream
	}
	stream := subscribe()
	e.sandboxes.events <- sandbox.Event{Type: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, Pod: id("a"), Container: id("c"), At: time.Unix(9, 0)}
	e.sandboxes.events <- sandbox.Event{Type: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, Pod: "gone", Container: "gone"}
	event, err := stream.Recv()
	if err != nil || event.ContainerId != id("c") || event.ContainerEventType != runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT ||
		event.CreatedAt != 9e9 || event.PodSandboxStatus.Metadata.Uid != "uid" || len(event.ContainersStatuses) != 4 {
		t.Errorf("event %v, %v", event, err)
	}
	event, err = stream.Recv()
	if err != nil || event.ContainerId != "gone" || event.PodSandboxStatus != nil || event.ContainersStatuses != nil {
		t.Errorf("event of a pod that is gone: %v, %v", event, err)
	}
	close(e.sandboxes.events)
	if _, err := stream.Recv(); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "list anew") {
		t.Errorf("a reader that lags: %v", err)
	}
}

// rows: E-08
func TestEventsEndWithTheServer(t *testing.T) {
	e := newEdge(t)
	stream, err := e.runtime.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		t.Fatal(err)
	}
	close(e.Server.closing)
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("error %v", err)
	}
	e.Server.closing = make(chan struct{}) // Close ends it again
}

// rows: D-55
func TestOldVersionIsNotServed(t *testing.T) {
	e := newEdge(t)
	err := e.conn.Invoke(t.Context(), "/runtime.v1alpha2.RuntimeService/Version", &runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("v1alpha2: %v", err)
	}
}

func BenchmarkListContainers(b *testing.B) {
	e := newEdge(b)
	one := e.sandboxes.containers[0]
	e.sandboxes.containers = nil
	for i := range 1000 {
		one.ID = fmt.Sprintf("%064x", i)
		e.sandboxes.containers = append(e.sandboxes.containers, one)
	}
	for b.Loop() {
		list, err := e.runtime.ListContainers(b.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil || len(list.Containers) != 1000 {
			b.Fatal(len(list.GetContainers()), err)
		}
	}
}

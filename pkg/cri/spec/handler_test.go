package spec

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rows: K-23
func TestHandler(t *testing.T) {
	core := specs.POSIXRlimit{Type: "RLIMIT_CORE", Soft: 5, Hard: 5}
	open := specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}
	all := []string{"ulimits", "writable-cgroups"}
	const ulimits, one, cgroups = "criserver.github.io/ulimits", "ulimits.criserver.github.io/c", "criserver.github.io/writable-cgroups"
	for _, tc := range []struct {
		name        string
		handler     Handler
		annotations map[string]string
		limits      string // NOFILE and CORE, soft
		writable    bool
		err         string
	}{
		{"nothing", Handler{}, nil, "100 ", false, ""},
		{"annotations that are not allowed", Handler{}, map[string]string{ulimits: "core=1", one: "junk", cgroups: "junk"}, "100 ", false, ""},
		{"one allowed, not the other", Handler{Annotations: all[:1]}, map[string]string{ulimits: "core=1", cgroups: "true"}, "100 1", false, ""},
		{"of the handler", Handler{Ulimits: []specs.POSIXRlimit{core, open}, WritableCgroups: true}, nil, "10 5", true, ""},
		{"of the pod, over the handler's", Handler{Ulimits: []specs.POSIXRlimit{core}, WritableCgroups: true, Annotations: all},
			map[string]string{ulimits: "core=7,nofile=3:4", cgroups: "false"}, "3 7", false, ""},
		{"of the container, over the pod's", Handler{Annotations: all}, map[string]string{ulimits: "core=7,nofile=3:4", one: "nofile=9", "ulimits.criserver.github.io/d": "core=1", cgroups: "true"}, "9 7", true, ""},
		{"no limit", Handler{Annotations: all}, map[string]string{ulimits: "everything"}, "", false, ulimits},
		{"no limit, of another container", Handler{Annotations: all}, map[string]string{"ulimits.criserver.github.io/d": "x"}, "", false, "github.io/d"},
		{"no boolean", Handler{Annotations: all}, map[string]string{cgroups: "yes"}, "", false, cgroups},
	} {
		t.Run(tc.name, func(t *testing.T) {
			in := kubelet()
			in.Host.CgroupV2 = true
			in.Pod.Annotations, in.Handler = tc.annotations, tc.handler
			in.Container.Metadata = &runtimeapi.ContainerMetadata{Name: "c"}
			in.Defaults.Ulimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 100}}
			err := tc.handler.CheckPod(in.Pod, in.Host)
			if tc.err != "" {
				if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want one of %s", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			s, err := Build(in)
			if err != nil {
				t.Fatal(err)
			}
			soft := func(kind string) string {
				for _, l := range s.Process.Rlimits {
					if l.Type == kind {
						return strconv.FormatUint(l.Soft, 10)
					}
				}
				return ""
			}
			if got := soft("RLIMIT_NOFILE") + " " + soft("RLIMIT_CORE"); got != tc.limits {
				t.Errorf("limits %q, want %q", got, tc.limits)
			}
			i := slices.IndexFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/sys/fs/cgroup" })
			if got := slices.Contains(s.Mounts[i].Options, "rw"); got != tc.writable {
				t.Errorf("cgroups writable: %t", got)
			}
			if len(in.Defaults.Ulimits) != 1 || in.Defaults.Ulimits[0].Soft != 100 {
				t.Error("the defaults were changed")
			}
			for key := range s.Annotations {
				if strings.Contains(key, "criserver") {
					t.Errorf("annotation %s reaches the spec", key)
				}
			}
		})
	}
	err := Handler{WritableCgroups: true}.CheckPod(&runtimeapi.PodSandboxConfig{}, Host{})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "cgroup v2") {
		t.Errorf("writable cgroups on a host with cgroup v1: %v", err)
	}
}

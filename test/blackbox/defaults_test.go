package blackbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

// What the node's configuration gives containers that ask for nothing: a limit of processes, and its own profile where
// they ask for the runtime's.
// rows: L-10, P-120c, D-200
func TestDefaultsOfTheNode(t *testing.T) {
	ours(t)
	profile := filepath.Join(t.TempDir(), "default.json")
	text := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO"}]}`
	if err := os.WriteFile(profile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	x := extraNode(t, "defaults", node.Options{Config: fmt.Sprintf("[defaults]\npids_limit = 40\nseccomp_profile = %q\n", profile)})
	p := podOn(t, x)
	c := p.start(image(loopbackBusybox), asleep())
	const change = "chmod 700 /tmp"
	if r, err := c.exec("sh", "-c", change); err != nil || !strings.Contains(string(r.Stderr), "Operation not permitted") {
		t.Errorf("%s under the node's profile: %v, %v", change, r, err)
	}
	limit := c.sh("cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max")
	equal(t, "limit of processes", limit, "40")
	// Last, for no exec has room beside so many.
	r, err := c.exec("sh", "-c", "i=0; while [ $i -lt 50 ]; do sleep 100 & i=$((i+1)); done")
	if err != nil || r.ExitCode == 0 || !strings.Contains(string(r.Stderr), "can't fork") {
		t.Errorf("fifty processes: %v, %v", r, err)
	}
	free := p.start(image(loopbackBusybox), asleep(), security(func(s *securityContext) {
		s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	}))
	free.sh(change)
}

// A pod needs no image: there is none that could be missing or collected.
// rows: D-123
func TestPodNeedsNoImage(t *testing.T) {
	ours(t)
	x := emptyNode(t, "empty", node.Options{})
	p := podOn(t, x, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = modePod })
	equal(t, "state", p.status().State, runtimeapi.PodSandboxState_SANDBOX_READY)
	images, err := x.Images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "images", len(images.Images), 0)
}

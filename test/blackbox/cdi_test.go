package blackbox

import (
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// describe writes a file of a vendor's devices for the node, which goes with the test. A device loop0 is the host's
// /dev/null, loop1 its /dev/zero.
func describe(t *testing.T, file, text string) {
	t.Helper()
	path := filepath.Join(n.Devices(), file)
	if err := os.MkdirAll(n.Devices(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	})
}

const loops = `cdiVersion: "0.5.0"
kind: "vendor0.example/loop"
containerEdits:
  env: [VENDOR0=injected]
devices:
  - name: loop0
    containerEdits:
      env: [LOOP0=present]
      deviceNodes: [{path: /dev/loop0, hostPath: /dev/null}]
      mounts: [{hostPath: /proc/version, containerPath: /etc/driver, options: [ro, bind]}]
  - name: loop1
    containerEdits:
      env: [LOOP1=present]
      deviceNodes: [{path: /dev/loop1, hostPath: /dev/zero}]
`

func cdi(names ...string) containerTweak {
	return func(c *runtimeapi.ContainerConfig) {
		for _, name := range names {
			c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: name})
		}
	}
}

func annotated(key, value string) containerTweak {
	return func(c *runtimeapi.ContainerConfig) { c.Annotations = map[string]string{key: value} }
}

const seeDevices = `echo $VENDOR0 $LOOP0 $LOOP1; cd /dev; for l in loop?; do [ -c $l ] && stat -c '%n %t:%T' $l; done; [ -e /etc/driver ] && cat /etc/driver; true`

// Devices come by field, by annotation, or by both, and then once.
// rows: K-19, K-20, D-186, P-131, P-132, P-133, P-135, P-135a
func TestCDI(t *testing.T) {
	ours(t)
	p := newPod(t)
	refused(t, second(p.tryCreate(cdi("vendor0.example/loop=loop0"))), codes.InvalidArgument, "CDI_devices", "vendor0.example/loop=loop0")
	describe(t, "vendor0.yaml", loops) // what is written later is found
	version, err := os.ReadFile("/proc/version")
	if err != nil {
		t.Fatal(err)
	}
	both := "injected present present\nloop0 1:3\nloop1 1:5\n" + string(version)
	equal(t, "by field", p.says(sh(seeDevices), cdi("vendor0.example/loop=loop0", "vendor0.example/loop=loop1")), both)
	equal(t, "by annotation", p.says(sh(seeDevices), annotated("cdi.k8s.io/test", "vendor0.example/loop=loop0,vendor0.example/loop=loop1")), both)
	equal(t, "by both", p.says(sh(seeDevices), cdi("vendor0.example/loop=loop1"), annotated("cdi.k8s.io/test", "vendor0.example/loop=loop1")),
		"injected present\nloop1 1:5\n")
	equal(t, "without", p.says(sh(seeDevices)), "\n")
	contains(t, "usable", p.says(sh("head -c 3 /dev/loop1 | od -c"), cdi("vendor0.example/loop=loop1")), `\0  \0  \0`)
}

// rows: K-19, K-20, P-134, P-134a
func TestUnknownCDIDevices(t *testing.T) {
	ours(t)
	p := newPod(t)
	describe(t, "vendor0.yaml", loops)
	refused(t, second(p.tryCreate(cdi("vendor0.example/loop=loop0", "vendor0.example/loop=loop9"))), codes.InvalidArgument, "loop=loop9")
	refused(t, second(p.tryCreate(annotated("cdi.k8s.io/test", "vendor1.example/loop=loop0"))), codes.InvalidArgument, "vendor1.example/loop=loop0")
	refused(t, second(p.tryCreate(annotated("cdi.k8s.io/test", "nonsense"))), codes.InvalidArgument, "cdi.k8s.io/test", "nonsense")
	refused(t, second(p.tryCreate(cdi("../../etc/passwd"))), codes.InvalidArgument, "CDI_devices[0].name")
	equal(t, "containers that are left", len(p.containers(&runtimeapi.ContainerFilter{PodSandboxId: p.id})), 0)
}

// Files that cannot be used are no harm to others.
// rows: D-186, P-136, P-137
func TestBrokenCDIFiles(t *testing.T) {
	ours(t)
	p := newPod(t)
	describe(t, "vendor0.yaml", loops)
	describe(t, "broken.yaml", "cdiVersion: [")
	describe(t, "hook.yaml", `{"cdiVersion": "0.5.0", "kind": "vendor1.example/loop", "devices": [{"name": "x", "containerEdits": {"hooks": [{"hookName": "no", "path": "../x"}]}}]}`)
	equal(t, "without devices", p.says(sh(seeDevices)), "\n")
	equal(t, "with one", p.says(sh(seeDevices), cdi("vendor0.example/loop=loop1")), "injected present\nloop1 1:5\n")
	refused(t, second(p.tryCreate(cdi("vendor1.example/loop=x"))), codes.InvalidArgument, "vendor1.example/loop=x", "hook.yaml")
}

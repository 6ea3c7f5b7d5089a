package libct

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// volumeLayers makes the layers of an image that serves as a volume.
func (n *node) volumeLayers() (lower []string) {
	n.t.Helper()
	for _, layer := range []string{"v2", "v1"} {
		lower = append(lower, filepath.Join(n.layers, layer))
		n.must(os.MkdirAll(filepath.Join(n.layers, layer, "dir/of-"+layer), 0o755))
		n.must(os.WriteFile(filepath.Join(n.layers, layer, "dir/file"), []byte(layer+"\n"), 0o644))
	}
	for name, to := range map[string]string{"inside": "dir", "out": "../..", "absolute": "/etc", "loop": "loop"} {
		n.must(os.Symlink(to, filepath.Join(n.layers, "v1", name)))
	}
	return lower
}

func (n *node) withImages(id string, maps []specs.LinuxIDMapping, images ...wire.Image) {
	n.t.Helper()
	n.rootfs(id, maps...)
	n.must(n.MountImages(n.t.Context(), id, images))
}

func TestImages(t *testing.T) {
	n := newNode(t)
	lower := n.volumeLayers()
	const script = `cat /i/dir/file /one/dir/file /sub/file; ls /sub; stat -c %u /i /one /sub/file; for d in /i /one /sub; do touch $d/x 2>/dev/null && echo writable; done; true`
	const want = "v2\nv1\nv2\nfile\nof-v1\nof-v2\n0\n0\n0\n"
	for id, maps := range map[string][]specs.LinuxIDMapping{"c": nil, "u": {{HostID: 200000, Size: 65536}}} {
		layers := wire.Rootfs{Lower: lower, UIDMap: maps, GIDMap: maps}
		single := wire.Rootfs{Lower: lower[1:], UIDMap: maps, GIDMap: maps}
		n.withImages(id, maps, wire.Image{Layers: layers}, wire.Image{Layers: single}, wire.Image{Layers: layers, SubPath: "inside"})
		table, err := os.ReadFile("/proc/self/mountinfo")
		n.must(err)
		if strings.Contains(string(table), n.ImagePath(id, 0)) {
			t.Errorf("%s: the host sees the mounts of the images", id)
		}
		spec := n.spec(id, "sh", "-c", script)
		for i, dest := range []string{"/i", "/one", "/sub"} {
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: n.ImagePath(id, i), Options: []string{"rbind", "rprivate", "ro"}})
		}
		if maps != nil {
			spec.Linux.UIDMappings, spec.Linux.GIDMappings = maps, maps
			spec.Linux.Namespaces = append(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}
		_, err = n.Create(t.Context(), id, CreateOptions{Spec: spec, LogPath: n.logPath(id)})
		n.must(err)
		n.must(n.Start(t.Context(), id))
		n.exit(id)
		if got := n.logged(id); got != want {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
		n.must(n.Delete(t.Context(), id, ""))
	}
}

// A sub path that is no directory within the image is refused, and nothing of the try is left.
// rows: M-13, P-128
func TestImageSubPaths(t *testing.T) {
	n := newNode(t)
	lower := n.volumeLayers()
	for sub, reason := range map[string]string{
		"nothing": "is not in the image", "dir/file": "is not a directory", "out": "leads out of the image", "..": "leads out of the image",
		"dir/../..": "leads out of the image", "absolute": "leads out of the image", "/etc": "leads out of the image", "loop": "too many levels of symbolic links",
	} {
		n.rootfs("c")
		err := n.MountImages(t.Context(), "c", []wire.Image{{Layers: wire.Rootfs{Lower: lower}, SubPath: sub}})
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %v, want %s", sub, err, reason)
		}
		n.must(n.Delete(t.Context(), "c", ""))
	}
	err := n.MountImages(t.Context(), "d", []wire.Image{{Layers: wire.Rootfs{Lower: lower}}})
	if !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a root filesystem: %v", err)
	}
	n.must(n.Delete(t.Context(), "d", ""))
}

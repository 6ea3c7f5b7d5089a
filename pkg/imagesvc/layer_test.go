package imagesvc

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func linkTo(name, target string) entry {
	return entry{name: name, header: tar.Header{Typeflag: tar.TypeLink, Linkname: target}}
}

func symlink(name, target string) entry {
	return entry{name: name, header: tar.Header{Typeflag: tar.TypeSymlink, Linkname: target}}
}

// TestLayerTrees pulls small layer stacks and compares what a container sees. want nil: the pull is refused, and nothing stays.
func TestLayerTrees(t *testing.T) {
	r, s := newRegistry(t), open(t)
	outside := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(outside, []byte("alive"), 0o640); err != nil {
		t.Fatal(err)
	}
	type stack [][]entry
	for name, c := range map[string]struct {
		layers stack
		want   map[string]string
	}{
		"whiteout":                           {stack{{file("a", "1"), file("b", "2")}, {file(".wh.a", "")}}, map[string]string{"b": "2"}},
		"opaque":                             {stack{{file("d/a", "1")}, {file("d/.wh..wh..opq", ""), file("d/b", "2")}}, map[string]string{"d": "dir", "d/b": "2"}},
		"opaque after its files":             {stack{{file("d/a", "1")}, {file("d/b", "2"), file("d/.wh..wh..opq", "")}}, map[string]string{"d": "dir", "d/b": "2"}},
		"whiteout twice":                     {stack{{file("a", "1"), file("b", "")}, {file(".wh.a", ""), file(".wh.a", "")}}, map[string]string{"b": ""}},
		"whiteout and new file":              {stack{{file("a", "1")}, {file("a", "2"), file(".wh.a", "")}}, map[string]string{"a": "2"}},
		"whiteout of what never was":         {stack{{file("a", "1")}, {file("d/.wh.x", ""), file("d/y", "2")}}, map[string]string{"a": "1", "d": "dir", "d/y": "2"}},
		"whiteout at the bottom":             {stack{{file("a", "1"), file(".wh.a", ""), file(".wh..wh..opq", "")}}, map[string]string{"a": "1"}},
		"aufs leftovers":                     {stack{{file("a", "1")}, {file(".wh..wh.plnk/x", ""), file(".wh..wh.aufs", "")}}, map[string]string{"a": "1", ".wh..wh.plnk": "dir", ".wh..wh.plnk/x": ""}},
		"directory becomes file":             {stack{{file("d/a", "1")}, {file("d", "2")}}, map[string]string{"d": "2"}},
		"file becomes directory":             {stack{{file("d", "1")}, {file("d/", ""), file("d/a", "2")}}, map[string]string{"d": "dir", "d/a": "2"}},
		"hard link within":                   {stack{{file("a", "1"), linkTo("b", "a")}}, map[string]string{"a": "1", "b": "1"}},
		"hard link into a lower layer":       {stack{{file("d/a", "1")}, {linkTo("b", "d/a"), file("c", "3"), file("x/.wh..wh..opq", "")}}, map[string]string{"d": "dir", "d/a": "1", "b": "1", "c": "3", "x": "dir"}},
		"hard link to nothing":               {stack{{file("a", "1")}, {linkTo("b", "missing")}}, nil},
		"hard link to nothing at the bottom": {stack{{linkTo("b", "missing")}}, nil},
		"hard link to an absolute path":      {stack{{linkTo("b", outside)}}, nil},
		"symlink up and out":                 {stack{{symlink("l", "../../../../../../../.."), file("l"+outside, "pwned")}}, nil},
		"absolute symlink":                   {stack{{symlink("l", filepath.Dir(outside)), file("l/canary", "pwned")}}, nil},
		"symlink of a lower layer":           {stack{{symlink("l", filepath.Dir(outside))}, {file("l/canary", "pwned")}}, map[string]string{"l": "dir", "l/canary": "pwned"}},
		"whiteout through a symlink":         {stack{{symlink("l", filepath.Dir(outside))}, {file("l/.wh.canary", "")}}, map[string]string{"l": "dir"}},
		"names that go up":                   {stack{{file("../../../x", "1"), file("/y", "2")}}, map[string]string{"x": "1", "y": "2"}},
		"root entries":                       {stack{{file("./", ""), symlink("/", "/etc"), file("a", "1")}}, map[string]string{"a": "1"}},
		"whiteout of nothing":                {stack{{file("a", "1")}, {file(".wh.", "")}}, nil},
		"whiteout of dots":                   {stack{{file("a", "1")}, {file("d/.wh...", "")}}, nil},
		"same name twice":                    {stack{{file("a", "1"), file("a", "2")}}, map[string]string{"a": "2"}},
		"device that looks like a whiteout":  {stack{{file("a", "1")}, {entry{name: "a", header: tar.Header{Typeflag: tar.TypeChar}}}}, map[string]string{"a": "1"}},
		"odd names":                          {stack{{file("new\nline", "1"), file("back\\slash", "2"), file("\xff\xfe", "3"), file(strings.Repeat("n", 255), "4")}}, map[string]string{"new\nline": "1", "back\\slash": "2", "\xff\xfe": "3", strings.Repeat("n", 255): "4"}},
		"name too long":                      {stack{{file(strings.Repeat("n", 256), "4")}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var layers []testLayer
			for _, entries := range c.layers {
				layers = append(layers, gzipLayer(entries...))
			}
			img, err := s.Pull(t.Context(), r.simple("t:"+strings.ReplaceAll(name, " ", "-"), layers...), Auth{})
			if (err == nil) != (c.want != nil) {
				// A refused tree may also be one that stayed inside.
				if err == nil && name == "symlink up and out" || err == nil && name == "absolute symlink" {
					s.Remove(t.Context(), img.ID.String())
				} else {
					t.Fatalf("pull: %v", err)
				}
			}
			if c.want != nil {
				if got := tree(t, s, img.ID); !reflect.DeepEqual(got, c.want) {
					t.Errorf("got  %q\nwant %q", got, c.want)
				}
				if err := s.Remove(t.Context(), img.ID.String()); err != nil {
					t.Error(err)
				}
			}
			if got, err := os.ReadFile(outside); err != nil || string(got) != "alive" {
				t.Fatalf("the file outside: %q %v", got, err)
			}
			if st, _ := os.Stat(outside); st.Mode().Perm() != 0o640 {
				t.Fatal("mode of the file outside changed:", st.Mode())
			}
			checkEmpty(t, s)
		})
	}
}

// TestHardLinkBelowIsCopiedUp: both names are one file in the new layer, and the lower layer is untouched.
// rows: IM-27
func TestHardLinkBelowIsCopiedUp(t *testing.T) {
	r, s := newRegistry(t), open(t)
	owned := file("d/a", "1")
	owned.header = tar.Header{Mode: 0o600, Uid: 7, Gid: 8}
	link := linkTo("b", "d/a")
	link.header.Mode, link.header.Uid, link.header.Gid = 0o600, 7, 8
	img := pull(t, s, r.simple("app:1", gzipLayer(owned), gzipLayer(link)))
	dirs, err := s.Use(t.Context(), img.ID)
	if err != nil {
		t.Fatal(err)
	}
	stat := func(p string) syscall.Stat_t {
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	a, b, low := stat(filepath.Join(dirs[0], "d/a")), stat(filepath.Join(dirs[0], "b")), stat(filepath.Join(dirs[1], "d/a"))
	if a.Ino != b.Ino || a.Uid != 7 || a.Mode&0o777 != 0o600 || low.Nlink != 1 || low.Ino == a.Ino {
		t.Errorf("%+v %+v %+v", a, b, low)
	}
}

// TestParentsInheritBelow: a directory that a layer only passes through keeps mode and owner from below, however many layers arrive at once.
func TestParentsInheritBelow(t *testing.T) {
	r, s := newRegistry(t), open(t, func(o *Options) { o.Parallel = 8 })
	dir := entry{name: "d/", header: tar.Header{Mode: 0o1777, Uid: 5, Gid: 6}}
	layers := []testLayer{gzipLayer(dir)}
	for i := range 9 {
		layers = append(layers, gzipLayer(file(fmt.Sprintf("d/f%d", i), "x"), file(fmt.Sprintf("d/.wh.f%d", i-1), "")))
	}
	img := pull(t, s, r.simple("app:1", layers...))
	dirs, err := s.Use(t.Context(), img.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		st, err := os.Stat(filepath.Join(d, "d"))
		if err != nil {
			t.Fatal(err)
		}
		if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 5 || sys.Gid != 6 || sys.Mode&0o7777 != 0o1777 {
			t.Errorf("%s: %o %d %d", d, sys.Mode, sys.Uid, sys.Gid)
		}
	}
	if got := tree(t, s, img.ID); !reflect.DeepEqual(got, map[string]string{"d": "dir", "d/f8": "x"}) {
		t.Error(got)
	}
}

func TestOverlayXattrsAreDropped(t *testing.T) {
	r, s := newRegistry(t), open(t)
	dir := entry{name: "d/", header: tar.Header{PAXRecords: map[string]string{
		"SCHILY.xattr.trusted.overlay.redirect": "/etc",
		"SCHILY.xattr.trusted.overlay.opaque":   "y",
		"SCHILY.xattr.user.overlay.opaque":      "y",
		"SCHILY.xattr.user.kept":                "yes",
		"SCHILY.xattr.security.capability":      "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
	}}}
	prog := file("d/ping", "x")
	prog.header.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": dir.header.PAXRecords["SCHILY.xattr.security.capability"]}
	delete(dir.header.PAXRecords, "SCHILY.xattr.security.capability")
	img := pull(t, s, r.simple("app:1", gzipLayer(file("d/low", "1")), gzipLayer(dir, prog)))
	dirs, err := s.Use(t.Context(), img.ID)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := unix.Llistxattr(filepath.Join(dirs[0], "d"), buf)
	if got := strings.Trim(string(buf[:max(n, 0)]), "\x00"); err != nil || got != "user.kept" {
		t.Errorf("xattrs %q %v", got, err)
	}
	if n, err := unix.Lgetxattr(filepath.Join(dirs[0], "d/ping"), "security.capability", buf); err != nil || n != 20 {
		t.Error("file capability lost:", n, err)
	}
	if got := tree(t, s, img.ID); got["d/low"] != "1" {
		t.Error("the directory became opaque:", got)
	}
}

// TestManyWhiteoutsStayLinear: the time for twice as many is not four times as long (hardening B6).
func TestManyWhiteoutsStayLinear(t *testing.T) {
	r, s := newRegistry(t), open(t)
	took := func(n int) time.Duration {
		var low, high []entry
		for i := range n {
			low = append(low, file(fmt.Sprintf("d/f%d", i), ""))
			high = append(high, file("d/.wh..wh..opq", ""))
		}
		start := time.Now()
		pull(t, s, r.simple(fmt.Sprintf("many:%d", n), gzipLayer(low...), gzipLayer(high...)))
		return time.Since(start)
	}
	one, two := took(2000), took(4000)
	t.Log(one, two)
	if two > 4*one+time.Second || two > 30*time.Second {
		t.Errorf("2000: %v, 4000: %v", one, two)
	}
}

// TestLayerFilter checks limits that would take too long to reach with a real layer.
func TestLayerFilter(t *testing.T) {
	f := &layerFilter{root: t.TempDir(), left: 100}
	for _, c := range []struct {
		size int64
		kind error
	}{{50, nil}, {-1, errRefused}, {1 << 62, errRefused}, {50, nil}, {1, errRefused}} {
		_, err := f.accept(&tar.Header{Name: "x", Size: c.size})
		if !errors.Is(err, c.kind) {
			t.Errorf("size %d: %v", c.size, err)
		}
	}
	f.left = 1 << 62
	if _, err := f.accept(&tar.Header{Name: "sparse", Size: 1 << 61}); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Error(err)
	}
	if got := unpackLimit(1 << 62); got <= 0 {
		t.Error("limit overflows:", got)
	}
}

// TestLayersOfOneImageNamedTwice: equal layers follow each other.
func TestLayersOfOneImageNamedTwice(t *testing.T) {
	r, s := newRegistry(t), open(t)
	l := gzipLayer(file("a", "1"))
	img := pull(t, s, r.simple("app:1", l, l, l))
	if got := tree(t, s, img.ID); got["a"] != "1" {
		t.Error(got)
	}
}

func TestImageWithoutLayers(t *testing.T) {
	r, s := newRegistry(t), open(t)
	img := pull(t, s, r.simple("empty:1"))
	dirs, err := s.Use(t.Context(), img.ID)
	if err != nil || len(dirs) != 1 || img.Size <= 0 || img.ChainID != "" {
		t.Fatalf("%v %v %+v", dirs, err, img)
	}
	if entries, err := os.ReadDir(dirs[0]); err != nil || len(entries) != 0 {
		t.Error(entries, err)
	}
}

func TestSpoolReaderEnds(t *testing.T) {
	sp, err := newSpool(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer sp.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := sp.reader(ctx).Read(make([]byte, 1)); done <- err }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(sp.file.Name())); len(left) != 0 {
		t.Error("the file has a name")
	}
}

// rows: IM-09, X-24
func TestSizesAddUp(t *testing.T) {
	r, s := newRegistry(t), open(t)
	img := pull(t, s, r.simple("app:1", gzipLayer(file("a", noise(3<<20)), file("b/c", "x")), zstdLayer(file("d", noise(1<<20)))))
	u, err := s.FSUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var bytes, inodes int64
	seen := map[uint64]bool{}
	filepath.WalkDir(s.root, func(p string, d os.DirEntry, err error) error {
		st, err := os.Lstat(p)
		if err != nil {
			t.Fatal(err)
		}
		if sys := st.Sys().(*syscall.Stat_t); !seen[sys.Ino] && filepath.Ext(p) != ".db" {
			seen[sys.Ino] = true
			bytes += sys.Blocks * 512
			inodes++
		}
		return nil
	})
	t.Logf("reported %d/%d, on disk %d/%d, image %d", u.Bytes, u.Inodes, bytes, inodes, img.Size)
	if d := bytes - int64(u.Bytes); d < 0 || d > 100<<10 {
		t.Errorf("reported %d bytes, on disk %d", u.Bytes, bytes)
	}
	if d := int64(u.Bytes) - img.Size; d < 0 || d > 16<<10 {
		t.Errorf("reported %d bytes, image %d", u.Bytes, img.Size)
	}
	if _, err := os.Stat(u.Path); err != nil || u.At.IsZero() {
		t.Error(u)
	}
	s.Remove(t.Context(), img.ID.String())
	if u, _ := s.FSUsage(t.Context()); u.Bytes != 0 || u.Inodes != 0 {
		t.Errorf("after removal: %+v", u)
	}
}

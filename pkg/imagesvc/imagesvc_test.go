package imagesvc

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// open opens a service below a directory of the test and closes it with the test.
func open(t testing.TB, change ...func(*Options)) *Service {
	t.Helper()
	return openAt(t, t.TempDir(), change...)
}

func openAt(t testing.TB, root string, change ...func(*Options)) *Service {
	t.Helper()
	o := Options{Root: root, ProgressTimeout: 10 * time.Second}
	for _, c := range change {
		c(&o)
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	s.retry.first = time.Millisecond
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error("Close:", err)
		}
	})
	return s
}

func pull(t testing.TB, s *Service, ref string) Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref, Auth{})
	if err != nil {
		t.Fatalf("pull: %v", err)
	}
	return img
}

// tree mounts the image's layers and reads all of it: path to contents, or to what the entry is.
func tree(t testing.TB, s *Service, id digest.Digest) map[string]string {
	t.Helper()
	dirs, err := s.Use(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Release(id)
	root := dirs[0]
	if len(dirs) > 1 {
		root = t.TempDir()
		if err := unix.Mount("overlay", root, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(dirs, ":")); err != nil {
			t.Fatal("mount:", err)
		}
		defer unix.Unmount(root, unix.MNT_DETACH)
	}
	all := map[string]string{}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		name := strings.TrimPrefix(p, root+"/")
		switch {
		case d.IsDir():
			all[name] = "dir"
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			all[name] = "-> " + target
			return err
		case d.Type().IsRegular():
			data, err := os.ReadFile(p)
			all[name] = string(data)
			return err
		default:
			all[name] = d.Type().String()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// leftovers fails the test if the store holds anything: after a refused pull and after the removal of everything.
func checkEmpty(t testing.TB, s *Service) {
	t.Helper()
	for _, dir := range []string{"snapshots/snapshots", "content/blobs/sha256", "content/ingest", "tmp"} {
		entries, err := os.ReadDir(filepath.Join(s.root, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("left over: %s/%s", dir, e.Name())
		}
	}
	ctx := inNamespace(t.Context())
	if all, err := s.store.leases.List(ctx); err != nil || len(all) > 0 {
		t.Errorf("leases left: %v %v", all, err)
	}
	if all := s.Images(); len(all) > 0 {
		t.Errorf("images left: %v", all)
	}
}

// rows: IM-27
func TestPullLayerTypes(t *testing.T) {
	r, s := newRegistry(t), open(t)
	docker := gzipLayer(file("d", "docker"))
	docker.mediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	ref := r.simple("app:1", gzipLayer(file("a/b", "gzip")), zstdLayer(file("c", "zstd")), plainLayer(file("e", "plain")), docker)
	img := pull(t, s, ref)
	got := tree(t, s, img.ID)
	want := map[string]string{"a": "dir", "a/b": "gzip", "c": "zstd", "d": "docker", "e": "plain"}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s: %q, want %q", k, got[k], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("tree %v", got)
	}
	if !slices.Equal(img.Tags, []string{ref}) || len(img.Digests) != 1 || img.Size <= 0 || img.ChainID == "" {
		t.Errorf("image %+v", img)
	}
	if s.Images()[0].ID != img.ID {
		t.Error("not listed")
	}
}

// rows: D-125
func TestPullSharesLayersAndRemoveFrees(t *testing.T) {
	r, s := newRegistry(t), open(t)
	base := gzipLayer(file("base", strings.Repeat("x", 1<<20)))
	one := pull(t, s, r.simple("one:1", base, gzipLayer(file("1", "1"))))
	before, err := s.FSUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	two := pull(t, s, r.simple("two:1", base, gzipLayer(file("2", "2"))))
	if n := r.blobGets()[digest.FromBytes(base.blob)]; n != 1 {
		t.Errorf("base fetched %d times", n)
	}
	pull(t, s, r.host+"/two:1")
	for d, n := range r.blobGets() {
		if n > 1 {
			t.Errorf("%s fetched %d times", d, n)
		}
	}
	if err := s.Remove(t.Context(), two.ID.String()); err != nil {
		t.Fatal(err)
	}
	after, _ := s.FSUsage(t.Context())
	if after.Bytes != before.Bytes || after.Inodes != before.Inodes {
		t.Errorf("usage %d/%d before, %d/%d after", before.Bytes, before.Inodes, after.Bytes, after.Inodes)
	}
	if got := tree(t, s, one.ID); got["1"] != "1" || len(got["base"]) != 1<<20 {
		t.Error("the other image is damaged")
	}
	if err := s.Remove(t.Context(), one.Tags[0]); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), one.Tags[0]); err != nil {
		t.Fatal("second removal:", err)
	}
	checkEmpty(t, s)
}

// rows: I-03, IM-12, P-110
func TestLookup(t *testing.T) {
	r, s := newRegistry(t), open(t, func(o *Options) { o.Pinned = []string{"*/pause:*"} })
	img := pull(t, s, r.simple("pause:3", gzipLayer(file("pause", "1"))))
	hex := img.ID.Encoded()
	for _, ref := range []string{img.Tags[0], img.Digests[0], img.ID.String(), hex, hex[:12], "sha256:" + hex[:12]} {
		got, err := s.Image(ref)
		if err != nil || got.ID != img.ID || !got.Pinned {
			t.Errorf("%s: %v %v", ref, got, err)
		}
	}
	tagAndDigest := img.Tags[0] + strings.TrimPrefix(img.Digests[0], r.host+"/pause")
	if _, err := s.Image(tagAndDigest); err != nil {
		t.Error("tag and digest:", err)
	}
	for ref, kind := range map[string]error{
		"": errdefs.ErrInvalidArgument, "Upper/Case": errdefs.ErrInvalidArgument, "a b": errdefs.ErrInvalidArgument,
		"busybox": errdefs.ErrNotFound, "0123456789ab": errdefs.ErrNotFound,
	} {
		if _, err := s.Image(ref); !errors.Is(err, kind) {
			t.Errorf("%q: %v, want %v", ref, err, kind)
		}
	}
	s.Reload(Options{})
	if got, _ := s.Image(hex); got.Pinned {
		t.Error("still pinned after Reload")
	}
}

// rows: D-127
func TestTagMoves(t *testing.T) {
	r, s := newRegistry(t), open(t)
	old := pull(t, s, r.simple("app:1", gzipLayer(file("v", "1"))))
	now := pull(t, s, r.simple("app:1", gzipLayer(file("v", "2"))))
	old, err := s.Image(old.ID.String())
	if err != nil {
		t.Fatal(err)
	}
	if len(old.Tags) != 0 || len(old.Digests) != 1 || len(now.Tags) != 1 || len(now.Digests) != 1 {
		t.Errorf("old %v %v, new %v %v", old.Tags, old.Digests, now.Tags, now.Digests)
	}
}

// rows: IM-01, IM-07, IM-08
func TestPullByDigest(t *testing.T) {
	r, s := newRegistry(t), open(t)
	desc := r.push(r.image(gzipLayer(file("a", "b"))))
	r.tag("app:1", desc)
	img := pull(t, s, r.host+"/app:1@"+desc.Digest.String())
	if len(img.Tags) != 0 || !slices.Equal(img.Digests, []string{r.host + "/app@" + desc.Digest.String()}) {
		t.Errorf("tags %v digests %v", img.Tags, img.Digests)
	}
	same := pull(t, s, r.tag("other:2", desc))
	if same.ID != img.ID || len(same.Tags) != 1 || len(same.Digests) != 2 {
		t.Errorf("tags %v digests %v", same.Tags, same.Digests)
	}
	if err := s.Remove(t.Context(), same.Tags[0]); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, s)
}

func TestReopen(t *testing.T) {
	r, root := newRegistry(t), t.TempDir()
	s := openAt(t, root)
	index := r.addJSON(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		platform(r.push(r.image(gzipLayer(file("right", "1")))), "linux", goarch),
	}}, ocispec.MediaTypeImageIndex)
	img := pull(t, s, r.tag("app:1", index))
	if _, err := s.Use(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, root)
	got := s.Images()
	if len(got) != 1 || got[0].ID != img.ID || got[0].Size != img.Size || !slices.Equal(got[0].Tags, img.Tags) || !slices.Equal(got[0].Digests, img.Digests) {
		t.Fatalf("got %+v, want %+v", got, img)
	}
	if err := s.Retain(t.Context(), map[digest.Digest]int{img.ID: 1}); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), img.ID.String()); err != nil {
		t.Fatal(err)
	}
	dirs, err := s.Use(t.Context(), img.ID)
	if err != nil {
		t.Fatal("a removed image in use:", err)
	}
	if _, err := os.Stat(filepath.Join(dirs[0], "right")); err != nil {
		t.Error(err)
	}
	s.Release(img.ID)
	s.Release(img.ID)
	s.wg.Wait()
	checkEmpty(t, s)
}

func TestRetainLetsGo(t *testing.T) {
	r, root := newRegistry(t), t.TempDir()
	s := openAt(t, root)
	img := pull(t, s, r.simple("app:1", gzipLayer(file("a", "1"))))
	if _, err := s.Use(t.Context(), img.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), img.ID.String()); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openAt(t, root)
	if err := s.Retain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, s)
}

// TestUseTouchesMemoryOnly uses an image with the database closed.
func TestUseTouchesMemoryOnly(t *testing.T) {
	r, s := newRegistry(t), open(t)
	img := pull(t, s, r.simple("app:1", gzipLayer(file("a", "1")), gzipLayer(file("b", "2"))))
	first, err := s.Use(t.Context(), img.ID)
	if err != nil {
		t.Fatal(err)
	}
	s.store.bolt.Close()
	again, err := s.Use(t.Context(), img.ID)
	if err != nil || !slices.Equal(first, again) || len(first) != 2 {
		t.Errorf("%v %v %v", first, again, err)
	}
	if _, err := os.Stat(filepath.Join(first[0], "b")); err != nil {
		t.Error("the topmost layer is not first:", err)
	}
}

// rows: D-166
func TestDamagedStoreIsSetAside(t *testing.T) {
	for name, damage := range map[string]func(file string) error{
		"truncated": func(f string) error { return os.Truncate(f, 9000) },
		"garbage":   func(f string) error { return os.WriteFile(f, []byte(strings.Repeat("garbage", 5000)), 0o600) },
		"page zeroed": func(f string) error {
			h, err := os.OpenFile(f, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer h.Close()
			_, err = h.WriteAt(make([]byte, 8*4096), 2*4096)
			return err
		},
	} {
		for _, db := range []string{"meta.db", "snapshots/metadata.db"} {
			t.Run(name+" "+db, func(t *testing.T) {
				r, root := newRegistry(t), t.TempDir()
				s := openAt(t, root)
				ref := r.simple("app:1", gzipLayer(file("a", "1")))
				pull(t, s, ref)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				if err := damage(filepath.Join(root, db)); err != nil {
					t.Fatal(err)
				}
				s = openAt(t, root)
				aside, _ := filepath.Glob(filepath.Join(root, "damaged-*", "snapshots"))
				if len(s.Images()) != 0 || len(aside) != 1 {
					t.Errorf("images %v, set aside %v", s.Images(), aside)
				}
				if got := tree(t, s, pull(t, s, ref).ID); got["a"] != "1" {
					t.Error("tree", got)
				}
			})
		}
	}
}

// TestDamagedDocument: an image whose config is damaged on disk is forgotten at Open and fetched whole again.
func TestDamagedDocument(t *testing.T) {
	r, root := newRegistry(t), t.TempDir()
	s := openAt(t, root)
	ref := r.simple("app:1", gzipLayer(file("a", "1")))
	img := pull(t, s, ref)
	blob := filepath.Join(root, "content/blobs/sha256", img.ID.Encoded())
	data, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(blob, 0o600)
	if err := os.WriteFile(blob, []byte(strings.Repeat("x", len(data))), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = openAt(t, root)
	if len(s.Images()) != 0 {
		t.Error("a damaged image is listed")
	}
	pull(t, s, ref)
	s.Close()
	s = openAt(t, root)
	if got := tree(t, s, img.ID); got["a"] != "1" {
		t.Error("tree", got)
	}
}

// TestDamagedWhileRunning: a document that turns out damaged when another name leads to it is fetched and replaced.
func TestDamagedWhileRunning(t *testing.T) {
	r, root := newRegistry(t), t.TempDir()
	s := openAt(t, root)
	desc := r.push(r.image(gzipLayer(file("a", "1"))))
	img := pull(t, s, r.tag("app:1", desc))
	for _, d := range []digest.Digest{desc.Digest, img.ID} {
		blob := filepath.Join(root, "content/blobs/sha256", d.Encoded())
		if err := os.Remove(blob); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(blob, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pull(t, s, r.tag("app:2", desc))
	s.Close()
	if got := openAt(t, root).Images(); len(got) != 1 || len(got[0].Tags) != 2 {
		t.Error(got)
	}
}

// TestDamagedLayer: of two images, the one that lost a layer is forgotten at Open and only that layer is fetched again.
// rows: D-166
func TestDamagedLayer(t *testing.T) {
	r, root := newRegistry(t), t.TempDir()
	s := openAt(t, root)
	base, top := gzipLayer(file("a", "1")), gzipLayer(file("b", "2"))
	whole := pull(t, s, r.simple("whole:1", base))
	ref := r.simple("app:1", base, top)
	img := pull(t, s, ref)
	dirs, err := s.Use(t.Context(), img.ID)
	if err != nil {
		t.Fatal(err)
	}
	s.Release(img.ID)
	if err := s.Retain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := os.RemoveAll(dirs[0]); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, root)
	if got := s.Images(); len(got) != 1 || got[0].ID != whole.ID {
		t.Error("listed:", got)
	}
	pull(t, s, ref)
	if got := tree(t, s, img.ID); got["b"] != "2" || got["a"] != "1" {
		t.Error(got)
	}
	if gets := r.blobGets(); gets[digest.FromBytes(base.blob)] != 1 || gets[digest.FromBytes(top.blob)] != 2 {
		t.Error("fetched:", gets)
	}
}

func TestRootIsClosed(t *testing.T) {
	r, root := newRegistry(t), filepath.Join(t.TempDir(), "images")
	s := openAt(t, root)
	pull(t, s, r.simple("app:1", gzipLayer(file("a", "1"))))
	if st, err := os.Stat(root); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", st.Mode(), err)
	}
}

func TestCloseDuringPull(t *testing.T) {
	r, root := newRegistry(t), t.TempDir()
	s := openAt(t, root)
	ref := r.simple("app:1", gzipLayer(file("a", "1")))
	entered, end := r.hang("/blobs/")
	defer end()
	result := make(chan error, 1)
	go func() { _, err := s.Pull(context.WithoutCancel(t.Context()), ref, Auth{}); result <- err }()
	<-entered
	start := time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err == nil || time.Since(start) > time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	checkEmpty(t, openAt(t, root))
}

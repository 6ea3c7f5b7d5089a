package blackbox

import (
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/images/oci"
	"github.com/criserver/criserver/test/node"
)

// pullWith pulls an image or tells why not.
func pullWith(t *testing.T, ref string, auth *runtimeapi.AuthConfig) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	r, err := n.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth})
	return r.GetImageRef(), err
}

// pull pulls an image, which stays.
func pull(t *testing.T, ref string) string {
	t.Helper()
	id, err := pullWith(t, ref, nil)
	if err != nil {
		t.Fatalf("pull %s: %v", ref, err)
	}
	return id
}

// imageStatus is nil if the runtime does not have the image.
func imageStatus(t *testing.T, ref string) *runtimeapi.Image {
	t.Helper()
	r, err := n.Images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	return r.Image
}

func removeImage(t *testing.T, ref string) {
	t.Helper()
	if _, err := n.Images.RemoveImage(context.Background(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		t.Errorf("remove image %s: %v", ref, err)
	}
}

// rows: I-03, I-04, I-05, IM-07, IM-09, IM-21, D-124, X-4, P-104, P-109b, P-111
func TestPullAndRemove(t *testing.T) {
	const repo = "gcr.io/k8s-staging-cri-tools/test-image-tags"
	id := pull(t, repo+":1")
	equal(t, "ID under another tag", pull(t, repo+":2"), id)
	im := imageStatus(t, repo+":1")
	if im == nil {
		t.Fatal("the image is not there")
	}
	equal(t, "ID", im.Id, id)
	equal(t, "tags", strings.Join(im.RepoTags, " "), repo+":1 "+repo+":2")
	if len(im.RepoDigests) != 1 || !strings.HasPrefix(im.RepoDigests[0], repo+"@sha256:") || im.Size == 0 {
		t.Errorf("digests %v, size %d", im.RepoDigests, im.Size)
	}
	for _, ref := range []string{im.Id, im.RepoDigests[0], strings.TrimPrefix(im.Id, "sha256:")} {
		if found := imageStatus(t, ref); found.GetId() != id {
			t.Errorf("by %s: %v", ref, found)
		}
	}
	removeImage(t, repo+":1") // an image goes with all its tags
	if imageStatus(t, repo+":2") != nil || imageStatus(t, id) != nil {
		t.Error("it is still there")
	}
	removeImage(t, repo+":1")
}

func TestPullByDigest(t *testing.T) {
	pull(t, busybox)
	digests := imageStatus(t, busybox).RepoDigests
	equal(t, "ID", pull(t, digests[0]), imageStatus(t, busybox).Id)
}

// rows: D-50
func TestPullWhatIsNotThere(t *testing.T) {
	_, err := pullWith(t, "registry.k8s.io/no-such-image:1", nil)
	if err == nil {
		t.Fatal("it was pulled")
	}
	contains(t, "the message", err.Error(), "no-such-image")
	for _, bad := range []string{"UPPER/case", "a b", "registry.k8s.io/x:bad tag", "x@sha256:123", strings.Repeat("a", 5000)} {
		if _, err := pullWith(t, bad, nil); err == nil {
			t.Errorf("%.20q was pulled", bad)
		}
	}
}

// Unusual but legal images work, each with what is special about it.
// rows: IM-27, IM-29, K-22, C-10
func TestEdgeImages(t *testing.T) {
	p := newPod(t)
	for ref, c := range map[string]struct{ script, want string }{
		"whiteout:v1":      {"ls -d /kept /dir/z /dir/sub2/new /gone /dir/x /dir/sub /dir/sub2/old 2>/dev/null | xargs", "/dir/sub2/new /dir/z /kept"},
		"hardlinks:v1":     {"cat /a /b /c | sort -u", "one file"},
		"modes:v1":         {"stat -c %a:%u:%g /suid /sgid /sticky /owned /null /fifo | xargs", "4755:0:0 2755:0:0 1777:0:0 640:12345:54321 666:0:0 600:0:0"},
		"names:v1":         {"cat /unicode* /dot/slash; find /long-directory-name -type f | wc -l", "u\nd\n1"},
		"typechange:v1":    {"cat /d /f/inner /l/through", "now a file\nnow a directory\nt"},
		"manylayers:v1":    {"cat /layers/* | wc -l", "120"},
		"emptylayers:v1":   {"cat /layers/000", "0"},
		"compression:none": {"read x < /comp; echo $x", "none"},
		"compression:zstd": {"read x < /comp; echo $x", "zstd"},
		"index:v1":         {"echo ok", "ok"},
		"nested-index:v1":  {"echo ok", "ok"},
		"volume:v1":        {"cat /vol/from-image", "copied into the volume"},
	} {
		t.Run(ref, func(t *testing.T) {
			p := p.in(t)
			if ref == "hardlinks:v1" {
				ours(t) // containerd cannot link to a file of a lower layer
			}
			pull(t, "docker.io/edge/"+ref)
			defer removeImage(t, "docker.io/edge/"+ref)
			ran := p.start(image("docker.io/edge/"+ref), sh(c.script))
			ran.ended()
			defer ran.remove()
			equal(t, "output", strings.TrimSpace(ran.stdout()), c.want)
		})
	}
	if _, err := pullWith(t, "docker.io/edge/arm64-only:v1", nil); err == nil {
		t.Error("an image for other machines was pulled")
	}
	pull(t, "docker.io/edge/nouser:v1")
	_, err := p.tryCreate(image("docker.io/edge/nouser:v1"), asleep())
	if err == nil {
		t.Error("a container was made for a user that is not there")
	}
	removeImage(t, "docker.io/edge/nouser:v1")
}

// Evil images are refused or harmless: nothing outside of the image's own tree is written, linked or removed.
func TestEvilImages(t *testing.T) {
	const victim = "/tmp/criserver-victim"
	if err := os.MkdirAll(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(victim)
	if err := os.WriteFile(victim+"/file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	hostname, err := os.ReadFile("/etc/hostname")
	if err != nil {
		t.Fatal(err)
	}
	p := newPod(t)
	for ref, mustFail := range map[string]bool{
		"dotdot:v1": false, "absolute:v1": false, "symlink:v1": false, "symlink-layers:v1": false, "hardlink:v1": false, "hardlink-symlink:v1": false,
		"whiteout-dotdot:v1": false, "whiteout-symlink:v1": false, "opaque-symlink:v1": false, "overlay-xattr:v1": false,
		"diffid:v1": true, "diffid-count:v1": true, "corrupt:v1": true, "size:v1": true, "notjson:v1": true,
	} {
		t.Run(ref, func(t *testing.T) {
			p := p.in(t)
			_, err := pullWith(t, "docker.io/evil/"+ref, nil)
			if err == nil && mustFail {
				t.Error("it was pulled")
			}
			if err == nil {
				if c, err := p.tryCreate(image("docker.io/evil/"+ref), sh("cat /stolen; ls /r")); err == nil && c.start() == nil {
					c.ended()
					if strings.TrimSpace(string(hostname)) != "" && strings.Contains(c.rawLog(), " "+string(hostname)) {
						t.Error("a file of the node can be read")
					}
				}
			} else if imageStatus(t, "docker.io/evil/"+ref) != nil {
				t.Error("it is listed although the pull failed")
			}
			if pwned, _ := filepath.Glob("/tmp/PWNED*"); len(pwned) > 0 {
				t.Errorf("it wrote %v", pwned)
			}
			if _, err := os.Stat(victim + "/file"); err != nil {
				t.Errorf("it removed a file: %v", err)
			}
			if now, _ := os.ReadFile("/etc/hostname"); string(now) != string(hostname) {
				t.Error("it changed /etc/hostname")
			}
		})
	}
}

// ownRegistry serves images of this test alone on a loopback port, behind what wrap puts in front, and gives the address.
func ownRegistry(t *testing.T, fill func(l *oci.Layout), wrap func(http.Handler) http.Handler) string {
	t.Helper()
	ours(t) // it must know the address
	l, err := oci.Create(filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	fill(l)
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: wrap(oci.NewRegistry(l))}
	go func() { _ = srv.Serve(lis) }() // ends with Close
	t.Cleanup(func() { srv.Close() })
	addr := lis.Addr().String()
	dir := filepath.Join(n.Dir, "certs.d", addr)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(fmt.Sprintf("server = \"http://%s\"\n", addr)), 0o644); err != nil {
		t.Fatal(err)
	}
	return addr
}

// small is an image of one layer of random-looking bytes.
func small(size int) func(l *oci.Layout) {
	return func(l *oci.Layout) {
		layer := l.Layer(func(t *oci.Tree) {
			block := digest.FromString("seed").Encoded()
			var b strings.Builder
			for b.Len() < size {
				block = digest.FromString(block).Encoded()
				b.WriteString(block)
			}
			t.File("data", b.String())
		})
		l.Tag("x/small:1", l.Image(oci.Image{Layers: []oci.Layer{layer}, Config: ocispec.ImageConfig{Cmd: []string{"/data"}}}))
	}
}

// rows: IM-14, IM-15, IM-16, GAP-05
func TestPullWithCredentials(t *testing.T) {
	var asked []string
	addr := ownRegistry(t, small(1000), func(h http.Handler) http.Handler {
		reg := h.(*oci.Registry)
		reg.User, reg.Password = "kubelet", "s3cret"
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, r.URL.Path)
			h.ServeHTTP(w, r)
		})
	})
	ref := addr + "/small:1"
	for name, auth := range map[string]*runtimeapi.AuthConfig{
		"none":          nil,
		"a wrong one":   {Username: "kubelet", Password: "wrong-pass-word"},
		"for elsewhere": {Username: "kubelet", Password: "s3cret", ServerAddress: "registry.example.org"},
	} {
		_, err := pullWith(t, ref, auth)
		if err == nil {
			t.Errorf("pulled with no good password (%s)", name)
			removeImage(t, ref)
			continue
		}
		for _, secret := range []string{"s3cret", "wrong-pass-word"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("the message has the password: %v", err)
			}
		}
	}
	for name, auth := range map[string]*runtimeapi.AuthConfig{
		"user and password": {Username: "kubelet", Password: "s3cret"},
		"encoded":           {Auth: "a3ViZWxldDpzM2NyZXQ="},
		"for this registry": {Username: "kubelet", Password: "s3cret", ServerAddress: "http://" + addr},
	} {
		if _, err := pullWith(t, ref, auth); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		removeImage(t, ref)
	}
	if len(asked) == 0 {
		t.Error("the registry was not asked at all")
	}
	if log, err := os.ReadFile(n.Log()); err != nil || strings.Contains(string(log), "s3cret") || strings.Contains(string(log), "wrong-pass-word") {
		t.Errorf("the daemon's log has a password, or cannot be read: %v", err)
	}
}

// A node may have credentials of its own for a registry, which serve where a pull brings none, and of which no log tells.
// rows: IM-19
func TestPullWithTheNodesCredentials(t *testing.T) {
	addr := ownRegistry(t, small(1000), func(h http.Handler) http.Handler {
		reg := h.(*oci.Registry)
		reg.User, reg.Password = "node", "s3cret-of-node"
		return h
	})
	ref := addr + "/small:1"
	if _, err := pullWith(t, ref, nil); err == nil {
		t.Fatal("pulled without credentials")
	}
	basic := base64.StdEncoding.EncodeToString([]byte("node:s3cret-of-node"))
	text := fmt.Sprintf("[host.\"http://%s\".header]\nAuthorization = \"Basic %s\"\n", addr, basic)
	if err := os.WriteFile(filepath.Join(n.Dir, "certs.d", addr, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	pull(t, ref)
	removeImage(t, ref)
	if log := nodeFile(t, n.Log()); strings.Contains(log, "s3cret-of-node") || strings.Contains(log, basic) {
		t.Error("the daemon's log has the password")
	}
}

// A registry that stops in the middle of a layer is asked for the rest.
func TestPullResumes(t *testing.T) {
	var cut int
	addr := ownRegistry(t, small(1<<20), func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet && cut < 2 {
				cut++
				h.ServeHTTP(&breaking{ResponseWriter: w, left: 100_000}, r)
				panic(http.ErrAbortHandler)
			}
			h.ServeHTTP(w, r)
		})
	})
	pull(t, addr+"/small:1")
	removeImage(t, addr+"/small:1")
	if cut != 2 {
		t.Errorf("the registry broke off %d times, want 2", cut)
	}
}

// breaking lets only so many bytes through.
type breaking struct {
	http.ResponseWriter
	left int
}

func (b *breaking) Write(p []byte) (int, error) {
	if len(p) > b.left {
		_, _ = b.ResponseWriter.Write(p[:b.left])
		b.left = 0
		return 0, http.ErrAbortHandler
	}
	b.left -= len(p)
	return b.ResponseWriter.Write(p)
}

// rows: D-51, GAP-35
func TestUnreachableRegistry(t *testing.T) {
	ours(t)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := lis.Addr().String()
	lis.Close() // nobody listens there now
	dir := filepath.Join(n.Dir, "certs.d", addr)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte("server = \"http://"+addr+"\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = pullWith(t, addr+"/x:1", nil)
	refused(t, err, codes.Unknown, "RegistryUnavailable", addr)
}

// A daemon that is killed in the middle of a pull leaves no image and no litter, and the next pull works.
// rows: D-57
func TestKilledWhilePulling(t *testing.T) {
	ours(t)
	stalled := make(chan struct{}, 100)
	release := make(chan struct{})
	addr := ownRegistry(t, small(4<<20), func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") && r.Method == http.MethodGet {
				h.ServeHTTP(&stalling{breaking{ResponseWriter: w, left: 1 << 20}, stalled, release}, r)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	leavesNothing(t)
	before := imageBytes(t)
	go func() { _, _ = pullWith(t, addr+"/small:1", nil) }() // fails with the daemon
	<-stalled
	restart(t, n, (*node.Node).Kill)
	close(release)
	if im := imageStatus(t, addr+"/small:1"); im != nil {
		t.Errorf("half an image is listed: %v", im)
	}
	eventually(t, 10*time.Second, "the disk is as it was", func() (bool, string) {
		now := imageBytes(t)
		return now < before+1<<20, fmt.Sprintf("%d bytes before, %d now", before, now)
	})
	pull(t, addr+"/small:1")
	removeImage(t, addr+"/small:1")
}

// stalling lets so many bytes through and then waits.
type stalling struct {
	breaking
	stalled chan<- struct{}
	release <-chan struct{}
}

func (s *stalling) Write(p []byte) (int, error) {
	if len(p) > s.left {
		s.stalled <- struct{}{}
		<-s.release
	}
	return s.breaking.Write(p)
}

// imageBytes is what images occupy on disk, counted by us.
func imageBytes(t *testing.T) (sum int64) {
	t.Helper()
	_ = filepath.Walk(n.Root(), func(_ string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() && !strings.HasSuffix(fi.Name(), ".db") {
			sum += fi.Size()
		}
		return nil
	})
	return sum
}

// rows: I-06, IM-25, D-121, D-125, GAP-22, P-121
func TestImageFsInfo(t *testing.T) {
	usage := func() uint64 {
		r, err := n.Images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(r.ImageFilesystems[0].FsId.Mountpoint); err != nil {
			t.Error(err)
		}
		return r.ImageFilesystems[0].UsedBytes.Value
	}
	const ref = "registry.k8s.io/e2e-test-images/httpd:2.4.39-4"
	before := usage()
	pull(t, ref)
	eventually(t, 15*time.Second, "the usage grows with an image", func() (bool, string) {
		now := usage()
		return now > before+1<<20, fmt.Sprintf("%d before, %d now", before, now)
	})
	removeImage(t, ref)
	eventually(t, 15*time.Second, "the usage falls when it is removed", func() (bool, string) {
		now := usage()
		return now < before+1<<20, fmt.Sprintf("%d before, %d now", before, now)
	})
}

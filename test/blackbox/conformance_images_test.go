package blackbox

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/images/oci"
	"github.com/criserver/criserver/test/node"
)

// images lists by a reference; "" is all.
func images(t *testing.T, ref string) map[string]*runtimeapi.Image {
	t.Helper()
	r, err := n.Images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: ref}}})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*runtimeapi.Image{}
	for _, im := range r.Images {
		all[im.Id] = im
	}
	if !other() {
		stream, err := n.Images.StreamImages(t.Context(), &runtimeapi.StreamImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: ref}}})
		streamed := collect(t, stream, err, (*runtimeapi.StreamImagesResponse).GetImages, (*runtimeapi.Image).GetId)
		equal(t, "images in the stream", len(streamed), len(all))
	}
	return all
}

// Lists by all names of an image, and without it when it is gone.
// rows: I-01, I-02, I-03, I-05, IM-06, IM-07, IM-08, IM-09, IM-11, D-120, D-124, T-27, P-101, P-102, P-104, P-108, P-109a, P-109b
func TestImageLists(t *testing.T) {
	ours(t)
	const tags = "gcr.io/k8s-staging-cri-tools/test-image-tags"
	id := pull(t, tags+":1")
	pull(t, tags+":2")
	im := images(t, "")[id]
	if im == nil {
		t.Fatal("it is not in the list of all")
	}
	equal(t, "size", im.Size > 0, true)
	equal(t, "spec", im.GetSpec().GetImage() != "", true)
	for _, ref := range []string{tags + ":1", tags + ":2", im.RepoDigests[0], id, strings.TrimPrefix(id, "sha256:")[:12]} {
		if found := images(t, ref); len(found) != 1 || found[id] == nil {
			t.Errorf("by %s: %v", ref, found)
		}
	}
	equal(t, "images of another tag", len(images(t, tags+":none")), 0)
	// The same bytes of another registry are the same image.
	const elsewhere = "k8s.gcr.io/pause:3.9"
	same := pull(t, "registry.k8s.io/pause:3.9")
	equal(t, "ID by another registry", pull(t, elsewhere), same)
	equal(t, "tags", strings.Join(imageStatus(t, same).RepoTags, " "), elsewhere+" registry.k8s.io/pause:3.9")
	equal(t, "digests", len(imageStatus(t, same).RepoDigests), 2)
	removeImage(t, elsewhere)
	equal(t, "the image of the other registry", imageStatus(t, "registry.k8s.io/pause:3.9"), nil)
	removeImage(t, id)
	equal(t, "images that are left", len(images(t, tags+":1"))+len(images(t, id))+len(images(t, same)), 0)
}

// References in all forms are normalised; a digest counts more than a tag.
// rows: IM-01, IM-21, D-126, X-23, D-50
func TestReferences(t *testing.T) {
	ours(t)
	const latest = "gcr.io/k8s-staging-cri-tools/test-image-latest"
	pull(t, latest)
	equal(t, "tag", strings.Join(imageStatus(t, latest).RepoTags, " "), latest+":latest")
	pull(t, "edge/volume:v1") // a short name
	im := imageStatus(t, "docker.io/edge/volume:v1")
	if im == nil {
		t.Fatal("a short name is not of docker.io")
	}
	d := digest.Digest(im.RepoDigests[0][strings.Index(im.RepoDigests[0], "@")+1:])
	removeImage(t, im.Id)
	equal(t, "ID by a tag that is not there and a digest", pull(t, "docker.io/edge/volume:none@"+d.String()), im.Id)
	equal(t, "tags of an image by digest", len(imageStatus(t, im.Id).RepoTags), 0)
	removeImage(t, im.Id)
	removeImage(t, latest)
}

// An image of several platforms has the digests of its index and of its manifest, in whatever order they come.
// rows: IM-08, IM-29, P-105, P-106, P-107, P-107a, P-114
func TestDigestsOfAnIndex(t *testing.T) {
	ours(t)
	const repo = "docker.io/edge/index"
	index, manifest := platformDigests(t, "edge/index", "v1")
	p := newPod(t)
	for name, order := range map[string][]string{"index first": {":v1", "@" + manifest}, "manifest first": {"@" + manifest, "@" + index}} {
		t.Run(name, func(t *testing.T) {
			var id string
			for _, suffix := range order {
				got := pull(t, repo+suffix)
				if id != "" && got != id {
					t.Errorf("another ID by %s", suffix)
				}
				id = got
			}
			digests := imageStatus(t, id).RepoDigests
			for _, d := range []string{index, manifest} {
				if !slices.Contains(digests, repo+"@"+d) {
					t.Errorf("digests %v lack %s", digests, d)
				}
				equal(t, "ID by digest", imageStatus(t, repo+"@"+d).GetId(), id)
			}
			c := p.in(t).start(image(repo+"@"+index), asleep())
			s := c.status()
			equal(t, "image_id", s.ImageId, id)
			equal(t, "image_ref is a digest of it", slices.Contains(digests, s.ImageRef), true)
			c.stop(0)
			c.remove()
			removeImage(t, id)
		})
	}
	_, err := pullWith(t, "docker.io/edge/arm64-only:v1", nil)
	if err == nil || !strings.Contains(err.Error(), runtime.GOARCH) {
		t.Errorf("an image for other machines: %v", err)
	}
}

// platformDigests asks the registry of the tests for the digests of an index and of its manifest for this machine.
func platformDigests(t *testing.T, repo, tag string) (index, manifest string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+loopbackBusybox[:strings.Index(loopbackBusybox, "/")]+"/v2/"+repo+"/manifests/"+tag+"?ns=docker.io", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", ocispec.MediaTypeImageIndex)
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	var parsed ocispec.Index
	if err := json.Unmarshal(b, &parsed); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	for _, m := range parsed.Manifests {
		if m.Platform != nil && m.Platform.Architecture == runtime.GOARCH {
			return digest.FromBytes(b).String(), m.Digest.String()
		}
	}
	t.Fatalf("no manifest for %s in %s", runtime.GOARCH, b)
	return "", ""
}

// Users of images, and what there is to say in detail.
// rows: IM-10, IM-13, IM-20, P-109, IM-04, I-04, GAP-06
func TestImageStatusFields(t *testing.T) {
	ours(t)
	const users = "gcr.io/k8s-staging-cri-tools/test-image-user-"
	for name, want := range map[string]string{"uid": "1002 ", "username": "- www-data", "uid-group": "1003 ", "username-group": "- www-data"} {
		ref := users + name + ":latest"
		pull(t, ref)
		im := imageStatus(t, ref)
		uid := "-"
		if im.Uid != nil {
			uid = itoa(int(im.Uid.Value))
		}
		equal(t, "user of "+name, uid+" "+im.Username, want)
		removeImage(t, ref)
	}
	cfg := podConfig("of-a-pull", t.TempDir())
	r, err := n.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox}, SandboxConfig: cfg})
	if err != nil || r.ImageRef != imageStatus(t, busybox).Id {
		t.Errorf("a pull for a pod: %v, %v", r, err)
	}
	s, err := n.Images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: busybox}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if cmd := dig(details(t, s.Info), "imageSpec", "config", "Cmd"); cmd == nil {
		t.Errorf("no command in the details: %s", s.Info)
	}
	_, err = n.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox, RuntimeHandler: "nosuch"}})
	refused(t, err, codes.InvalidArgument, "nosuch")
	r, err = n.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox, RuntimeHandler: "special"}})
	if err != nil || r.ImageRef != imageStatus(t, busybox).Id { // all handlers are of this platform: one image serves them
		t.Errorf("a pull for a handler: %v, %v", r, err)
	}
}

// The annotations of an image's manifest are told with it, however it was asked for.
// rows: IM-02
func TestAnnotationsOfAnImage(t *testing.T) {
	addr := ownRegistry(t, func(l *oci.Layout) {
		layer := l.Layer(func(t *oci.Tree) { t.File("data", "x") })
		l.Tag("x/noted:1", l.Image(oci.Image{Layers: []oci.Layer{layer}, Annotations: map[string]string{"org.example.note": "of the manifest"}}))
	}, func(h http.Handler) http.Handler { return h })
	ref := addr + "/noted:1"
	_, err := n.Images.PullImage(t.Context(), &runtimeapi.PullImageRequest{
		Image: &runtimeapi.ImageSpec{Image: ref, Annotations: map[string]string{"org.example.asked": "of the request"}}})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "annotations", fmt.Sprint(imageStatus(t, ref).GetSpec().GetAnnotations()), "map[org.example.note:of the manifest]")
	removeImage(t, ref)
}

// An image goes although a container uses it, and the container does not notice.
// rows: D-122, X-6, P-114b, I-05
func TestImageOfAContainerGoes(t *testing.T) {
	ours(t)
	const ref = "docker.io/edge/volume:v1"
	id := pull(t, ref)
	p := newPod(t)
	c := p.start(image(ref), asleep())
	var group sync.WaitGroup
	for range 5 {
		group.Go(func() { removeImage(t, id) })
	}
	group.Wait()
	equal(t, "image", imageStatus(t, id), nil)
	equal(t, "a file of it", c.sh("cat /vol/from-image"), "copied into the volume")
	equal(t, "image_id", c.status().ImageId, id)
	restart(t, n, nodeKill)
	equal(t, "a file of it after a restart", c.sh("cat /vol/from-image; ls -d /bin/busybox"), "copied into the volume\n/bin/busybox")
	c.stop(0)
	c.remove()
}

// Where images are and where containers write: both lists, which are the same on one filesystem, on paths of the node.
// rows: I-06, IM-25, IM-26, GAP-23, P-121, P-122
func TestFilesystems(t *testing.T) {
	ours(t)
	images, containers := filesystems(t, n)
	if images.UsedBytes.Value == 0 || images.InodesUsed.Value == 0 || images.Timestamp == 0 {
		t.Errorf("images occupy nothing: %v", images)
	}
	if !proto.Equal(images, containers) {
		t.Errorf("one filesystem is told as two: %v and %v", images, containers)
	}
	equal(t, "device", device(t, images.FsId.Mountpoint), device(t, n.Root()))
}

// filesystems are those of images and of writable layers.
func filesystems(t *testing.T, on *node.Node) (images, containers *runtimeapi.FilesystemUsage) {
	t.Helper()
	r, err := on.Images.ImageFsInfo(context.Background(), &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.ImageFilesystems) != 1 || len(r.ContainerFilesystems) != 1 {
		t.Fatalf("filesystems %v", r)
	}
	return r.ImageFilesystems[0], r.ContainerFilesystems[0]
}

// With a filesystem of their own the writable layers are told apart from the images, and are counted there alone.
// rows: I-06, IM-26, GAP-23
func TestSplitFilesystems(t *testing.T) {
	ours(t)
	x := extraNode(t, "split", node.Options{})
	if err := x.Stop(); err != nil {
		t.Fatal(err)
	}
	layers := filepath.Join(x.Root(), "containers")
	if err := unix.Mount("layers", layers, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(layers, 0); err != nil {
			t.Error(err)
		}
	})
	if err := x.Boot(); err != nil {
		t.Fatal(err)
	}
	images, empty := filesystems(t, x)
	p := podOn(t, x)
	c := p.start(image(loopbackBusybox), sh("dd if=/dev/zero of=/file bs=1M count=5 2>/dev/null; echo written; sleep 1000"))
	c.hasLogged("written")
	equal(t, "device of images", device(t, images.FsId.Mountpoint), device(t, x.Root()))
	equal(t, "device of writable layers", device(t, empty.FsId.Mountpoint), device(t, layers))
	if device(t, layers) == device(t, x.Root()) {
		t.Error("nothing is mounted there")
	}
	eventually(t, 20*time.Second, "what was written is counted", func() (bool, string) {
		imagesNow, full := filesystems(t, x)
		equal(t, "bytes of images", imagesNow.UsedBytes.Value, images.UsedBytes.Value)
		return full.UsedBytes.Value >= empty.UsedBytes.Value+5<<20 && full.UsedBytes.Value < empty.UsedBytes.Value+6<<20, full.String()
	})
}

// A manifest of the first schema is refused in words.
// rows: IM-28
func TestSchemaOne(t *testing.T) {
	addr := ownRegistry(t, func(l *oci.Layout) { small(10)(l) }, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				h.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", "application/vnd.docker.distribution.manifest.v1+prettyjws")
			_, _ = io.WriteString(w, `{"schemaVersion": 1, "name": "small", "tag": "1", "architecture": "amd64", "fsLayers": [], "history": [], "signatures": []}`)
		})
	})
	_, err := pullWith(t, addr+"/small:1", nil)
	if err == nil {
		t.Fatal("it was pulled")
	}
	contains(t, "the message", err.Error(), "manifest.v1", "no longer supported")
}

// A pull whose caller gives it a millisecond, or leaves, ends with that and leaves nothing.
// rows: I-04, D-57
func TestPullIsCancelled(t *testing.T) {
	ours(t)
	release := make(chan struct{})
	entered := make(chan struct{}, 10)
	addr := ownRegistry(t, small(1000), func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case entered <- struct{}{}:
			default:
			}
			<-release
			h.ServeHTTP(w, r)
		})
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	_, err := n.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: addr + "/small:1"}})
	refused(t, err, codes.Canceled)
	equal(t, "image", imageStatus(t, addr+"/small:1"), nil)
	close(release)
}

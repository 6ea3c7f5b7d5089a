package imagesvc

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// testRegistry is a registry in the test's process. It keeps blobs and manifests by digest and tags by
// repository:tag, counts what is asked for, and lets a test step in before it answers.
type testRegistry struct {
	*httptest.Server
	host string

	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	types map[digest.Digest]string                      // media types of manifests
	tags  map[string]digest.Digest                      // repo:tag
	gets  map[digest.Digest]int                         // GETs of blobs
	seen  []*http.Request                               // all requests
	sent  int64                                         // bytes of blobs
	hook  func(http.ResponseWriter, *http.Request) bool // true: answered
}

func newRegistry(t testing.TB) *testRegistry {
	r := &testRegistry{blobs: map[digest.Digest][]byte{}, types: map[digest.Digest]string{}, tags: map[string]digest.Digest{}, gets: map[digest.Digest]int{}}
	r.Server = httptest.NewServer(r)
	r.host = strings.TrimPrefix(r.URL, "http://")
	t.Cleanup(r.Close)
	return r
}

// step installs a hook.
func (r *testRegistry) step(h func(http.ResponseWriter, *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hook = h
}

func (r *testRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.seen = append(r.seen, req.Clone(req.Context()))
	hook := r.hook
	r.mu.Unlock()
	if hook != nil && hook(w, req) {
		return
	}
	rest := strings.TrimPrefix(req.URL.Path, "/v2/")
	repo, ref, ok := strings.Cut(rest, "/manifests/")
	if ok {
		r.serveManifest(w, req, repo, ref)
		return
	}
	if _, ref, ok = strings.Cut(rest, "/blobs/"); ok {
		r.serveBlob(w, req, digest.Digest(ref))
		return
	}
	w.WriteHeader(http.StatusNotFound)
}

func (r *testRegistry) serveManifest(w http.ResponseWriter, req *http.Request, repo, ref string) {
	r.mu.Lock()
	d := digest.Digest(ref)
	if !strings.Contains(ref, ":") {
		d = r.tags[repo+":"+ref]
	}
	data, ok := r.blobs[d]
	mediaType := r.types[d]
	r.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if req.Method == http.MethodGet {
		w.Write(data)
	}
}

func (r *testRegistry) serveBlob(w http.ResponseWriter, req *http.Request, d digest.Digest) {
	r.mu.Lock()
	data, ok := r.blobs[d]
	if req.Method == http.MethodGet {
		r.gets[d]++
	}
	r.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	http.ServeContent(&countingWriter{w, r}, req, "", time.Time{}, bytes.NewReader(data))
}

type countingWriter struct {
	http.ResponseWriter
	r *testRegistry
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	w.r.sent += int64(n)
	return n, err
}

func (r *testRegistry) requests() []*http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.seen)
}

func (r *testRegistry) blobGets() map[digest.Digest]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.gets)
}

// add keeps a blob and describes it.
func (r *testRegistry) add(data []byte, mediaType string) ocispec.Descriptor {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := digest.FromBytes(data)
	r.blobs[d], r.types[d] = data, mediaType
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (r *testRegistry) addJSON(v any, mediaType string) ocispec.Descriptor {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return r.add(data, mediaType)
}

// tag lets host/repo:tag stand for desc and returns that name.
func (r *testRegistry) tag(repoTag string, desc ocispec.Descriptor) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tags[repoTag] = desc.Digest
	return r.host + "/" + repoTag
}

// testImage is an image being made: change what a test is about, then push.
type testImage struct {
	config   ocispec.Image
	manifest ocispec.Manifest
}

func (r *testRegistry) image(layers ...testLayer) *testImage {
	img := &testImage{}
	img.config.Platform = ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	img.config.RootFS.Type = "layers"
	img.manifest.Versioned = specs.Versioned{SchemaVersion: 2}
	img.manifest.MediaType = ocispec.MediaTypeImageManifest
	for _, l := range layers {
		img.config.RootFS.DiffIDs = append(img.config.RootFS.DiffIDs, digest.FromBytes(l.tar))
		img.manifest.Layers = append(img.manifest.Layers, r.add(l.blob, l.mediaType))
	}
	return img
}

func (r *testRegistry) push(img *testImage) ocispec.Descriptor {
	img.manifest.Config = r.addJSON(img.config, ocispec.MediaTypeImageConfig)
	return r.addJSON(img.manifest, img.manifest.MediaType)
}

// simple pushes an image of the layers and returns its name.
func (r *testRegistry) simple(repoTag string, layers ...testLayer) string {
	return r.tag(repoTag, r.push(r.image(layers...)))
}

type testLayer struct {
	tar, blob []byte
	mediaType string
}

// entry is one tar entry; a name that ends in / is a directory.
type entry struct {
	name, body string
	header     tar.Header // what is not set is filled in
}

func file(name, body string) entry { return entry{name: name, body: body} }

func archiveOf(entries ...entry) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.header
		h.Name = e.name
		h.Size = int64(len(e.body))
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if h.Typeflag == 0 && strings.HasSuffix(h.Name, "/") {
			h.Typeflag = tar.TypeDir
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		io.WriteString(w, e.body)
	}
	w.Close()
	return buf.Bytes()
}

func plainLayer(entries ...entry) testLayer {
	t := archiveOf(entries...)
	return testLayer{t, t, ocispec.MediaTypeImageLayer}
}

func gzipLayer(entries ...entry) testLayer { return gzipped(archiveOf(entries...)) }

func gzipped(t []byte) testLayer {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	z.Write(t)
	z.Close()
	return testLayer{t, buf.Bytes(), ocispec.MediaTypeImageLayerGzip}
}

func zstdLayer(entries ...entry) testLayer {
	t := archiveOf(entries...)
	z, _ := zstd.NewWriter(nil)
	defer z.Close()
	return testLayer{t, z.EncodeAll(t, nil), ocispec.MediaTypeImageLayerZstd}
}

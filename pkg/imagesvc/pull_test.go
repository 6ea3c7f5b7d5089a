package imagesvc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const goarch = runtime.GOARCH

func platform(d ocispec.Descriptor, os, arch string) ocispec.Descriptor {
	d.Platform = &ocispec.Platform{OS: os, Architecture: arch}
	return d
}

// hang lets requests whose path contains part wait until end is called.
func (r *testRegistry) hang(part string) (entered <-chan struct{}, end func()) {
	in, out := make(chan struct{}, 64), make(chan struct{})
	r.step(func(_ http.ResponseWriter, req *http.Request) bool {
		if strings.Contains(req.URL.Path, part) {
			in <- struct{}{}
			select {
			case <-out:
			case <-req.Context().Done():
				return true
			}
		}
		return false
	})
	return in, sync.OnceFunc(func() { close(out) })
}

func noise(n int) string {
	b := make([]byte, n)
	rand.New(rand.NewSource(int64(n))).Read(b)
	return string(b)
}

// rows: IM-29
func TestIndex(t *testing.T) {
	r, s := newRegistry(t), open(t)
	manifest := func(os, arch, body string) ocispec.Descriptor {
		img := r.image(gzipLayer(file("which", body)))
		img.config.OS, img.config.Architecture = os, arch
		return platform(r.push(img), os, arch)
	}
	index := func(m ...ocispec.Descriptor) ocispec.Descriptor {
		return r.addJSON(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: m}, ocispec.MediaTypeImageIndex)
	}
	bare := func(d ocispec.Descriptor) ocispec.Descriptor { d.Platform = nil; return d }
	right, wrong := manifest("linux", goarch, "right"), manifest("windows", goarch, "wrong")
	for name, c := range map[string]struct {
		target ocispec.Descriptor
		err    error
		text   string
	}{
		"second":         {target: index(wrong, right)},
		"nested":         {target: index(wrong, index(index(right)))},
		"no platform":    {target: index(bare(wrong), bare(right))},
		"too deep":       {target: index(index(index(index(index(right))))), err: errRefused, text: "deep"},
		"none":           {target: index(wrong), err: errdefs.ErrNotFound, text: "windows/" + goarch},
		"other manifest": {target: bare(wrong), err: errdefs.ErrNotFound, text: "linux/" + goarch},
	} {
		t.Run(name, func(t *testing.T) {
			img, err := s.Pull(t.Context(), r.tag("i:"+strings.ReplaceAll(name, " ", "-"), c.target), Auth{})
			if c.err != nil {
				if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := tree(t, s, img.ID); got["which"] != "right" {
				t.Error(got)
			}
			if !strings.HasSuffix(img.Digests[0], c.target.Digest.String()) && len(img.Digests) == 1 {
				t.Error("digest is not that of the index:", img.Digests)
			}
		})
	}
}

func TestHostileImages(t *testing.T) {
	r, s := newRegistry(t), open(t)
	good := func() *testImage { return r.image(gzipLayer(file("a", "1"))) }
	with := func(change func(*testImage)) ocispec.Descriptor {
		img := good()
		change(img)
		return r.push(img)
	}
	retype := func(l testLayer, mediaType string) testLayer { l.mediaType = mediaType; return l }
	cut := gzipLayer(file("a", noise(10000)))
	cut.blob = cut.blob[:len(cut.blob)-8]
	trailing := gzipLayer(file("a", "1"))
	trailing.blob = append(trailing.blob, "garbage"...)
	img := good()
	img.manifest.Config = r.addJSON(img.config, ocispec.MediaTypeImageConfig)
	doubled, _ := json.Marshal(img.manifest)
	doubled = bytes.Replace(doubled, []byte(`"layers"`), []byte(`"Layers":[],"layers"`), 1)
	member := gzipped(make([]byte, 16<<20))
	bomb := testLayer{member.tar, bytes.Repeat(member.blob, 2*bombFloor/len(member.tar)), member.mediaType} // many members, no files: padding of an archive
	artifact := func(title string) ocispec.Descriptor {
		l := r.add([]byte("content"), "text/plain")
		l.Annotations = map[string]string{ocispec.AnnotationTitle: title}
		return r.addJSON(ocispec.Manifest{Config: r.add([]byte("{}"), ocispec.MediaTypeEmptyJSON), Layers: []ocispec.Descriptor{l}}, ocispec.MediaTypeImageManifest)
	}
	otherBlob := r.add([]byte("as announced"), "text/plain")
	r.blobs[otherBlob.Digest] = []byte("as it came..")
	manifestType, indexType := ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	many := make([]ocispec.Descriptor, maxIndexSize+1)
	for i := range many {
		many[i] = platform(ocispec.Descriptor{MediaType: manifestType, Digest: digest.FromString("x"), Size: 1}, "linux", goarch)
	}
	for name, c := range map[string]struct {
		target ocispec.Descriptor
		err    error
	}{
		"wrong diff ID":            {with(func(i *testImage) { i.config.RootFS.DiffIDs[0] = digest.FromString("x") }), errRefused},
		"too many diff IDs":        {with(func(i *testImage) { i.config.RootFS.DiffIDs = append(i.config.RootFS.DiffIDs, digest.FromString("x")) }), errRefused},
		"too few diff IDs":         {with(func(i *testImage) { i.config.RootFS.DiffIDs = nil }), errRefused},
		"size too small":           {with(func(i *testImage) { i.manifest.Layers[0].Size-- }), errRefused},
		"size too large":           {with(func(i *testImage) { i.manifest.Layers[0].Size++ }), ErrRegistryUnavailable},
		"size negative":            {with(func(i *testImage) { i.manifest.Layers[0].Size = -1 }), errRefused},
		"size huge":                {with(func(i *testImage) { i.manifest.Layers[0].Size = 1 << 62 }), errdefs.ErrResourceExhausted},
		"bad digest":               {with(func(i *testImage) { i.manifest.Layers[0].Digest = "sha256:../../x" }), errRefused},
		"md5":                      {with(func(i *testImage) { i.manifest.Layers[0].Digest = "md5:d41d8cd98f00b204e9800998ecf8427e" }), errRefused},
		"config is layer":          {r.addJSON(map[string]any{"config": ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("x"), Size: 1}, "layers": []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromString("x"), Size: 1}}}, manifestType), errRefused},
		"layer missing":            {with(func(i *testImage) { i.manifest.Layers[0].Digest = digest.FromString("missing") }), errdefs.ErrNotFound},
		"encrypted":                {with(func(i *testImage) { i.manifest.Layers[0].MediaType += "+encrypted" }), errRefused},
		"artifact that climbs":     {artifact("../x"), errRefused},
		"artifact at the root":     {artifact("/x"), errRefused},
		"artifact that is a dir":   {artifact("."), errRefused},
		"artifact that whites out": {artifact("a/.wh.b"), errRefused},
		"artifact with a NUL":      {artifact("a\x00b"), errRefused},
		"artifact of another blob": {r.addJSON(ocispec.Manifest{Config: r.add([]byte("{}"), ocispec.MediaTypeEmptyJSON), Layers: []ocispec.Descriptor{otherBlob}}, manifestType), errRefused},
		"both":                     {r.addJSON(map[string]any{"config": ocispec.Descriptor{}, "layers": []string{}, "manifests": []string{}}, manifestType), errRefused},
		"index with layers":        {r.addJSON(map[string]any{"layers": []string{}, "manifests": []ocispec.Descriptor{}}, indexType), errRefused},
		"double key":               {r.add(doubled, manifestType), errRefused},
		"deep JSON":                {r.add([]byte(`{"config":`+strings.Repeat("[", 100000)+strings.Repeat("]", 100000)+`}`), manifestType), errRefused},
		"other type":               {r.add([]byte(`{"mediaType":"`+indexType+`"}`), manifestType), errRefused},
		"index too large":          {r.addJSON(ocispec.Index{MediaType: indexType, Manifests: many}, indexType), errRefused},
		"manifest too large":       {r.add([]byte(`{"x":"`+strings.Repeat("x", 5<<20)+`"}`), manifestType), errdefs.ErrNotFound},
		"config too large":         {with(func(i *testImage) { i.config.Author = strings.Repeat("x", 5<<20) }), errRefused},
		"schema 1":                 {r.addJSON(map[string]any{"schemaVersion": 1}, "application/vnd.docker.distribution.manifest.v1+prettyjws"), errdefs.ErrNotImplemented},
		"plain as gzip":            {r.push(r.image(retype(plainLayer(file("a", "1")), ocispec.MediaTypeImageLayerGzip))), errRefused},
		"zstd as gzip":             {r.push(r.image(retype(zstdLayer(file("a", "1")), ocispec.MediaTypeImageLayerGzip))), errRefused},
		"gzip as plain":            {r.push(r.image(retype(gzipLayer(file("a", "1")), ocispec.MediaTypeImageLayer))), errRefused},
		"cut gzip":                 {r.push(r.image(cut)), errRefused},
		"trailing garbage":         {r.push(r.image(trailing)), errRefused},
		"no archive":               {r.push(r.image(gzipped([]byte(strings.Repeat("no archive ", 1000))))), errRefused},
		"bomb":                     {r.push(r.image(bomb)), errRefused},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := s.Pull(t.Context(), r.tag("h:"+strings.ReplaceAll(name, " ", "-"), c.target), Auth{})
			if !errors.Is(err, c.err) || name == "bomb" && !strings.Contains(err.Error(), "unpacks to more") {
				t.Errorf("got %v, want %v", err, c.err)
			}
			checkEmpty(t, s)
		})
	}
}

func TestWrongBytes(t *testing.T) {
	r, s := newRegistry(t), open(t)
	l := gzipLayer(file("a", "1"))
	ref := r.simple("app:1", l)
	r.mu.Lock()
	r.blobs[digest.FromBytes(l.blob)] = gzipLayer(file("a", "2")).blob
	r.mu.Unlock()
	_, err := s.Pull(t.Context(), ref, Auth{})
	if !errors.Is(err, errRefused) {
		t.Error(err)
	}
	checkEmpty(t, s)

	same := bytes.Clone(l.blob)
	same[4]++ // the time in gzip's header: other bytes, the same archive
	r.mu.Lock()
	r.blobs[digest.FromBytes(l.blob)] = same
	r.mu.Unlock()
	if _, err := s.Pull(t.Context(), ref, Auth{}); !errors.Is(err, errRefused) {
		t.Error(err)
	}
	checkEmpty(t, s)
	r.add(l.blob, "")
	pull(t, s, ref)
}

// TestForeignLayer: the URLs of a descriptor are not followed; the blob comes from the registry.
func TestForeignLayer(t *testing.T) {
	r, other, s := newRegistry(t), newRegistry(t), open(t)
	l := gzipLayer(file("a", "1"))
	l.mediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	img := r.image(l)
	img.manifest.Layers[0].URLs = []string{other.URL + "/layer", "file:///etc/passwd"}
	pull(t, s, r.tag("app:1", r.push(img)))
	if n := len(other.requests()); n != 0 {
		t.Errorf("%d requests to the URL of a layer", n)
	}
}

// rows: IM-22
func TestConcurrentPullsShare(t *testing.T) {
	r, s := newRegistry(t), open(t)
	ref := r.simple("app:1", gzipLayer(file("a", noise(100000))), gzipLayer(file("b", "2")))
	other := r.simple("other:1", gzipLayer(file("a", noise(100000))), gzipLayer(file("c", "3")))
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			name := ref
			if i%2 == 1 {
				name = other
			}
			if _, err := s.Pull(t.Context(), name, Auth{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for d, n := range r.blobGets() {
		if n != 1 && !strings.Contains(fmt.Sprint(s.Images()), d.String()) { // configs are small and not shared
			t.Errorf("blob %s fetched %d times", d, n)
		}
	}
	if len(s.Images()) != 2 {
		t.Error(s.Images())
	}
}

// TestDeadline: the caller gets its answer in time, and the retry collects the result of the same download.
// rows: I-04, D-57
func TestDeadline(t *testing.T) {
	r, s := newRegistry(t), open(t)
	ref := r.simple("app:1", gzipLayer(file("a", "1")))
	entered, end := r.hang("/blobs/")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := s.Pull(ctx, ref, Auth{})
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	if len(s.Images()) != 0 {
		t.Error("partial image listed")
	}
	<-entered
	end()
	pull(t, s, ref)
	for d, n := range r.blobGets() {
		if n > 1 {
			t.Errorf("%s fetched %d times", d, n)
		}
	}
}

// TestOneCallerLeaves: a shared download goes on for those who still wait.
func TestOneCallerLeaves(t *testing.T) {
	r, s := newRegistry(t), open(t)
	ref := r.simple("app:1", gzipLayer(file("a", "1")))
	entered, end := r.hang("/blobs/")
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := s.Pull(ctx, ref, Auth{}); first <- err }()
	<-entered
	go func() { _, err := s.Pull(t.Context(), ref, Auth{}); second <- err }()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	end()
	if err := <-second; err != nil {
		t.Error(err)
	}
}

// rows: IM-23, P-177, P-178
func TestStall(t *testing.T) {
	for _, where := range []string{"/manifests/", "/blobs/"} {
		t.Run(where, func(t *testing.T) {
			r, s := newRegistry(t), open(t, func(o *Options) { o.ProgressTimeout = 200 * time.Millisecond })
			ref := r.simple("app:1", gzipLayer(file("a", noise(1<<20))))
			_, end := r.hang(where)
			defer end()
			start := time.Now()
			_, err := s.Pull(t.Context(), ref, Auth{})
			if !errors.Is(err, ErrRegistryUnavailable) || !strings.Contains(err.Error(), r.host) || time.Since(start) > 3*time.Second {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
			checkEmpty(t, s)
		})
	}
	t.Run("in the middle", func(t *testing.T) {
		r, s := newRegistry(t), open(t, func(o *Options) { o.ProgressTimeout = 200 * time.Millisecond })
		l := gzipLayer(file("a", noise(1<<20)))
		ref := r.simple("app:1", l)
		r.step(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.HasSuffix(req.URL.Path, digest.FromBytes(l.blob).String()) {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(l.blob)))
			w.Write(l.blob[:len(l.blob)*99/100])
			w.(http.Flusher).Flush()
			<-req.Context().Done()
			return true
		})
		_, err := s.Pull(t.Context(), ref, Auth{})
		if !errors.Is(err, ErrRegistryUnavailable) || !strings.Contains(err.Error(), r.host) {
			t.Error(err)
		}
		checkEmpty(t, s)
	})
}

// TestResets: a connection that is reset again and again costs no byte twice.
func TestResets(t *testing.T) {
	r, s := newRegistry(t), open(t)
	l := gzipLayer(file("a", noise(4<<20)))
	ref := r.simple("app:1", l)
	d := digest.FromBytes(l.blob)
	var sent, resets atomic.Int64
	r.step(func(w http.ResponseWriter, req *http.Request) bool {
		if !strings.HasSuffix(req.URL.Path, d.String()) {
			return false
		}
		var from int
		fmt.Sscanf(req.Header.Get("Range"), "bytes=%d-", &from)
		piece := min(100_000, len(l.blob)-from)
		w.Header().Set("Content-Length", fmt.Sprint(len(l.blob)-from))
		if from > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(l.blob)-1, len(l.blob)))
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(l.blob[from : from+piece])
		sent.Add(int64(piece))
		if from+piece == len(l.blob) {
			return true
		}
		w.(http.Flusher).Flush()
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return true
		}
		resets.Add(1)
		if resets.Load()%2 == 0 {
			conn.(*net.TCPConn).SetLinger(0) // RST; else FIN
			time.Sleep(time.Millisecond)     // let what was sent be read first: a RST throws it away
		}
		conn.Close()
		return true
	})
	img := pull(t, s, ref)
	if got := tree(t, s, img.ID); got["a"] != noise(4<<20) {
		t.Error("contents differ")
	}
	t.Logf("%d resets, %d bytes sent for %d", resets.Load(), sent.Load(), len(l.blob))
	if sent.Load() > int64(len(l.blob))*11/10 {
		t.Error("too many bytes sent again")
	}
}

// TestRangeLies: what a registry answers to a range request may be anything; the image is right all the same.
func TestRangeLies(t *testing.T) {
	for _, status := range []int{http.StatusOK, http.StatusPartialContent} {
		r, s := newRegistry(t), open(t)
		l := gzipLayer(file("a", noise(1<<20)))
		ref := r.simple("app:1", l)
		var asked atomic.Int64
		r.step(func(w http.ResponseWriter, req *http.Request) bool {
			if !strings.HasSuffix(req.URL.Path, digest.FromBytes(l.blob).String()) {
				return false
			}
			if n := asked.Add(1); n == 1 { // cut off in the middle
				w.Header().Set("Content-Length", fmt.Sprint(len(l.blob)))
				w.Write(l.blob[:len(l.blob)/2])
				return true
			}
			if req.Header.Get("Range") == "" {
				return false
			}
			w.WriteHeader(status)
			w.Write(l.blob) // from the beginning
			return true
		})
		img := pull(t, s, ref)
		if got := tree(t, s, img.ID); got["a"] != noise(1<<20) {
			t.Error(status, "contents differ")
		}
	}
}

func TestStatusCodes(t *testing.T) {
	for _, c := range []struct {
		code  int
		times int64 // how often; then it works
		ok    bool
		kind  error
	}{
		{429, 2, true, nil}, {500, 2, true, nil}, {502, 2, true, nil}, {503, 3, true, nil}, {504, 1, true, nil},
		{503, 1000, false, ErrRegistryUnavailable}, {429, 1000, false, ErrRegistryUnavailable},
		{401, 1000, false, errdefs.ErrUnauthenticated}, {403, 1000, false, errdefs.ErrPermissionDenied}, {404, 1000, false, errdefs.ErrNotFound},
		{416, 1000, false, ErrRegistryUnavailable},
	} {
		t.Run(fmt.Sprintf("%d x%d", c.code, c.times), func(t *testing.T) {
			r, s := newRegistry(t), open(t)
			ref := r.simple("app:1", gzipLayer(file("a", "1")))
			var n atomic.Int64
			r.step(func(w http.ResponseWriter, _ *http.Request) bool {
				if n.Add(1) > c.times {
					return false
				}
				w.WriteHeader(c.code)
				fmt.Fprint(w, "the registry says why")
				return true
			})
			_, err := s.Pull(t.Context(), ref, Auth{})
			if c.ok != (err == nil) || c.kind != nil && !errors.Is(err, c.kind) {
				t.Error(err)
			}
			if n.Load() > c.times+20 || c.times == 1000 && n.Load() > 20 {
				t.Errorf("%d requests", n.Load())
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	r, s := newRegistry(t), open(t)
	s.retry.retryAfter = 50 * time.Millisecond
	ref := r.simple("app:1", gzipLayer(file("a", "1")))
	var n atomic.Int64
	r.step(func(w http.ResponseWriter, _ *http.Request) bool {
		if n.Add(1) > 1 {
			return false
		}
		w.Header().Set("Retry-After", "1000000000")
		w.WriteHeader(429)
		return true
	})
	start := time.Now()
	pull(t, s, ref)
	if took := time.Since(start); took < 50*time.Millisecond || took > 5*time.Second {
		t.Error("waited", took)
	}
}

// rows: D-51
func TestUnreachable(t *testing.T) {
	s := open(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	start := time.Now()
	_, err = s.Pull(t.Context(), l.Addr().String()+"/app:1", Auth{})
	if !errors.Is(err, ErrRegistryUnavailable) || !errors.Is(err, errdefs.ErrUnavailable) || !strings.Contains(err.Error(), l.Addr().String()) || time.Since(start) > 5*time.Second {
		t.Error(err)
	}
}

func TestBadReference(t *testing.T) {
	s := open(t)
	for _, ref := range []string{"", "A", "a:b:c", "@sha256", "a@sha256:12", strings.Repeat("a/", 5000), "../x", "a b", "\x00"} {
		if _, err := s.Pull(t.Context(), ref, Auth{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%.30q: %v", ref, err)
		}
	}
}

// TestLimitsOfAnswers: answers without end are cut.
func TestLimitsOfAnswers(t *testing.T) {
	r, s := newRegistry(t), open(t)
	ref := r.simple("app:1", gzipLayer(file("a", "1")))
	var sent atomic.Int64
	r.step(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Method == http.MethodHead { // no length, no digest: the client has to read it all
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			return true
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		for chunk := []byte(strings.Repeat(" ", 1<<16)); req.Context().Err() == nil; {
			n, err := w.Write(chunk)
			sent.Add(int64(n))
			if err != nil {
				break
			}
		}
		return true
	})
	if _, err := s.Pull(t.Context(), ref, Auth{}); err == nil {
		t.Error("no error")
	}
	if sent.Load() > 64<<20 {
		t.Errorf("read %d bytes", sent.Load())
	}
}

// TestDiskWatermark is what stops a layer that would fill the disk.
func TestDiskWatermark(t *testing.T) {
	if err := checkRoom(os.TempDir(), 1<<62); !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Error(err)
	}
	if err := checkRoom(os.TempDir(), 1); err != nil {
		t.Error(err)
	}
	if err := checkRoom(filepath.Join(t.TempDir(), "missing"), 1); err == nil {
		t.Error("no error")
	}
}

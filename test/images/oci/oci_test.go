package oci

import (
	"archive/tar"
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func example(t *testing.T) *Layout {
	t.Helper()
	l, err := Create(filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	layer := l.Layer(func(tr *Tree) {
		tr.Dir(0o755, "etc")
		tr.File("etc/os", "test\n")
		tr.File("usr/share/deep/file", "x")
	}, Gzip, Zstd, Plain)
	for _, c := range []Compression{Gzip, Zstd, Plain} {
		l.Tag("example.org/a/b:"+string(c), l.Image(Image{Layers: []Layer{layer}, Compression: c}))
	}
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestSameInputSameBytes(t *testing.T) {
	a, b := example(t), example(t)
	for _, ref := range a.Refs() {
		da, _ := a.Lookup(ref)
		if db, ok := b.Lookup(ref); !ok || da.Digest != db.Digest {
			t.Errorf("%s: %s and %s", ref, da.Digest, db.Digest)
		}
	}
}

func TestParentsAreAddedOnce(t *testing.T) {
	l := example(t)
	d, _ := l.Lookup("example.org/a/b:gzip")
	var m ocispec.Manifest
	readJSON(t, l.BlobPath(d.Digest), &m)
	f, err := os.Open(l.BlobPath(m.Layers[0].Digest))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if want := []string{"etc/", "etc/os", "usr/", "usr/share/", "usr/share/deep/", "usr/share/deep/file"}; !slices.Equal(names, want) {
		t.Errorf("entries %q, want %q", names, want)
	}
}

func TestFirstErrorIsKept(t *testing.T) {
	l, err := Create(filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	l.Layer(func(tr *Tree) { tr.Copy("x", 0o644, "/does/not/exist"); tr.File("y", "y") })
	l.Tag("example.org/x:1", l.Image(Image{}))
	if err := l.Finish(); !os.IsNotExist(err) {
		t.Errorf("Finish: %v", err)
	}
	if _, err := Open(l.dir); !os.IsNotExist(err) {
		t.Errorf("a broken layout can be opened: %v", err)
	}
}

func TestRegistry(t *testing.T) {
	l := example(t)
	reg := NewRegistry(l)
	reg.User, reg.Password = "u", "p"
	srv := httptest.NewServer(reg)
	defer srv.Close()
	d, _ := l.Lookup("example.org/a/b:gzip")
	var m ocispec.Manifest
	readJSON(t, l.BlobPath(d.Digest), &m)
	for _, c := range []struct {
		path, password string
		method         string
		want           int
		length         int64
	}{
		{"/v2/", "p", "GET", 200, -1},
		{"/v2/", "wrong", "GET", 401, -1},
		{"/v2/a/b/manifests/gzip", "p", "GET", 200, d.Size},
		{"/v2/a/b/manifests/gzip", "p", "HEAD", 200, d.Size},
		{"/v2/a/b/manifests/" + d.Digest.String(), "p", "GET", 200, d.Size},
		{"/v2/other/manifests/" + d.Digest.String(), "p", "GET", 404, -1},
		{"/v2/a/b/manifests/absent", "p", "GET", 404, -1},
		{"/v2/a/b/blobs/" + m.Layers[0].Digest.String(), "p", "GET", 200, m.Layers[0].Size},
		{"/v2/a/b/blobs/" + digest.FromString("none").String(), "p", "GET", 404, -1},
		{"/v2/a/b/blobs/sha256:../../index.json", "p", "GET", 404, -1},
		{"/v2/a/b/tags/list", "p", "GET", 200, -1},
		{"/v2/a/b/blobs/uploads/", "p", "POST", 405, -1},
	} {
		req, err := http.NewRequest(c.method, srv.URL+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.SetBasicAuth("u", c.password)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != c.want || (c.length >= 0 && resp.ContentLength != c.length) {
			t.Errorf("%s %s: %s, %d bytes: %s", c.method, c.path, resp.Status, resp.ContentLength, body)
		}
	}
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

// Package oci writes container images as OCI image layouts, byte for byte the same from the same input, and serves
// them as a registry. It can also write what no honest tool would: tests need images that lie.
//
// A Layout and a Tree keep the first error and do nothing after it, so that a catalogue of images reads as a list;
// Layout.Finish returns it.
package oci

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's own media types, which most images in the wild still have.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// Epoch is the time stamp of everything that has none of its own.
var Epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Layout is a directory with blobs and an index.json that has a descriptor for every full reference.
type Layout struct {
	dir  string
	refs map[string]ocispec.Descriptor
	err  error
}

// Create makes an empty layout in dir, in place of what is there.
func Create(dir string) (*Layout, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		return nil, err
	}
	return &Layout{dir: dir, refs: map[string]ocispec.Descriptor{}}, nil
}

// Open reads the index of a finished layout.
func Open(dir string) (*Layout, error) {
	b, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return nil, err
	}
	var idx ocispec.Index
	if err := json.Unmarshal(b, &idx); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	l := &Layout{dir: dir, refs: map[string]ocispec.Descriptor{}}
	for _, d := range idx.Manifests {
		l.refs[d.Annotations[ocispec.AnnotationRefName]] = d
	}
	return l, nil
}

// Refs are the full references in the layout, sorted.
func (l *Layout) Refs() []string {
	refs := make([]string, 0, len(l.refs))
	for r := range l.refs {
		refs = append(refs, r)
	}
	slices.Sort(refs)
	return refs
}

// Lookup finds the manifest or index of a full reference.
func (l *Layout) Lookup(ref string) (ocispec.Descriptor, bool) {
	d, ok := l.refs[ref]
	return d, ok
}

// Tag gives a manifest or index its full reference.
func (l *Layout) Tag(ref string, d ocispec.Descriptor) { l.refs[ref] = d }

// BlobPath is where a blob is, or would be.
func (l *Layout) BlobPath(d digest.Digest) string {
	return filepath.Join(l.dir, "blobs", d.Algorithm().String(), d.Encoded())
}

// Finish writes the index and returns the first error of all that was done.
func (l *Layout) Finish() error {
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, r := range l.Refs() {
		d := l.refs[r]
		// The second name is what `ctr images import` looks for.
		d.Annotations = map[string]string{ocispec.AnnotationRefName: r, "io.containerd.image.name": r}
		idx.Manifests = append(idx.Manifests, d)
	}
	b, err := json.MarshalIndent(idx, "", " ")
	l.check(err)
	l.check(os.WriteFile(filepath.Join(l.dir, ocispec.ImageLayoutFile), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	if l.err == nil { // an index stands for a whole layout
		l.check(os.WriteFile(filepath.Join(l.dir, ocispec.ImageIndexFile), append(b, '\n'), 0o644))
	}
	return l.err
}

func (l *Layout) check(err error) {
	if l.err == nil {
		l.err = err
	}
}

// Write keeps b as a blob.
func (l *Layout) Write(mediaType string, b []byte) ocispec.Descriptor {
	d := digest.FromBytes(b)
	if l.err == nil {
		l.check(os.WriteFile(l.BlobPath(d), b, 0o644))
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// WriteJSON keeps v as a blob of JSON.
func (l *Layout) WriteJSON(mediaType string, v any) ocispec.Descriptor {
	b, err := json.Marshal(v)
	l.check(err)
	return l.Write(mediaType, b)
}

// Image is one image for one platform.
type Image struct {
	Config      ocispec.ImageConfig
	Layers      []Layer
	Compression Compression // Gzip if empty
	Docker      bool        // Docker's media types instead of OCI's
	Arch        string      // amd64 if empty
	Annotations map[string]string
	DiffIDs     []digest.Digest // to be claimed instead of the true ones
}

// With is the image with one more layer.
func (im Image) With(layer Layer) Image {
	im.Layers = append(slices.Clone(im.Layers), layer)
	return im
}

// Image stores the configuration and the manifest of an image and describes the manifest.
func (l *Layout) Image(im Image) ocispec.Descriptor {
	if im.Compression == "" {
		im.Compression = Gzip
	}
	if im.Arch == "" {
		im.Arch = "amd64"
	}
	platform := ocispec.Platform{Architecture: im.Arch, OS: "linux"}
	created := Epoch
	cfg := ocispec.Image{Created: &created, Config: im.Config, Platform: platform}
	cfg.RootFS.Type = "layers"
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, Annotations: im.Annotations, Layers: []ocispec.Descriptor{}}
	for i, layer := range im.Layers {
		d, ok := layer.blobs[im.Compression]
		if !ok {
			l.check(fmt.Errorf("layer %d was not stored as %s", i+1, im.Compression))
		}
		if im.Docker {
			d.MediaType = dockerLayer
		}
		m.Layers = append(m.Layers, d)
		cfg.RootFS.DiffIDs = append(cfg.RootFS.DiffIDs, layer.DiffID)
		cfg.History = append(cfg.History, ocispec.History{Created: &created, CreatedBy: fmt.Sprintf("layer %d", i+1)})
	}
	if im.DiffIDs != nil {
		cfg.RootFS.DiffIDs = im.DiffIDs
	}
	configType := ocispec.MediaTypeImageConfig
	m.MediaType = ocispec.MediaTypeImageManifest
	if im.Docker {
		m.MediaType, configType = dockerManifest, dockerConfig
	}
	m.Config = l.WriteJSON(configType, cfg)
	d := l.WriteJSON(m.MediaType, m)
	d.Platform = &platform
	return d
}

// Index stores an index of manifests, or a Docker manifest list.
func (l *Layout) Index(docker bool, manifests ...ocispec.Descriptor) ocispec.Descriptor {
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests}
	if docker {
		idx.MediaType = dockerList
	}
	return l.WriteJSON(idx.MediaType, idx)
}

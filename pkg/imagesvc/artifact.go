package imagesvc

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An artifact is an image whose config is not that of a container (OCI image spec, "Guidelines for Artifact Usage"): each
// of its layers is a file, whatever is in it, and they serve as a volume. It is kept as an image is, with a snapshot for
// each file, so that artifacts share files, and pulls, uses and garbage are no different.

// artifact reads the manifest of one.
func (p *picker) artifact(ctx context.Context, manifest document, b *body) (*found, error) {
	if err := checkDescriptor(*b.Config); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	if len(b.Layers) > maxLayers {
		return nil, fmt.Errorf("%s has %d files, more than %d: %w", manifest.desc.Digest, len(b.Layers), maxLayers, errRefused)
	}
	f := &found{id: manifest.desc.Digest, annotations: b.Annotations, files: []string{}}
	for i, l := range b.Layers {
		if l.MediaType == ocispec.MediaTypeEmptyJSON {
			continue // stands for none
		}
		name, err := fileName(l)
		if err != nil {
			return nil, fmt.Errorf("%s: layer %d: %w", manifest.desc.Digest, i, err)
		}
		f.layers, f.files = append(f.layers, l), append(f.files, name)
		f.diffs = append(f.diffs, digest.FromString("file\x00"+name+"\x00"+l.Digest.String())) // no archive has this digest
	}
	f.chain = identity.ChainIDs(slices.Clone(f.diffs))
	config, err := p.document(ctx, *b.Config)
	if err != nil {
		return nil, err
	}
	manifest.labels = map[string]string{labelConfig: b.Config.Digest.String()}
	if id := f.chainID(); id != "" {
		manifest.labels[labelSnapshot] = id.String() // not of the config, which many artifacts have in common
	}
	f.documents = []document{{desc: *b.Config, data: config}, manifest}
	return f, nil
}

// fileName is what the layer of an artifact is called: its title or, without one, its digest.
func fileName(l ocispec.Descriptor) (string, error) {
	if err := checkDescriptor(l); err != nil {
		return "", err
	}
	name := l.Annotations[ocispec.AnnotationTitle]
	if name == "" {
		return l.Digest.Encoded(), nil
	}
	hidden := slices.ContainsFunc(strings.Split(name, "/"), func(part string) bool { return strings.HasPrefix(part, whiteoutPrefix) })
	if len(name) > maxFileName || hidden || name == "." || !filepath.IsLocal(name) || filepath.Clean(name) != name || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("title %.80q is no name of a file: %w", name, errRefused)
	}
	return name, nil
}

// maxFileName in bytes of a title.
const maxFileName = 1024

// fileArchive is an archive of one file that nobody can execute or change.
func fileArchive(name string, size int64, content io.Reader) (io.ReadCloser, error) {
	var header bytes.Buffer
	err := tar.NewWriter(&header).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o444})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errRefused)
	}
	const block = 512
	end := make([]byte, (block-size%block)%block+2*block)
	return io.NopCloser(io.MultiReader(&header, io.LimitReader(content, size), bytes.NewReader(end))), nil
}

package imagesvc

import (
	"bytes"
	"context"
	_ "crypto/sha512" // digests of layers may be sha512
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// document is a small blob on the way from a name to an image, with the garbage collector's references to what follows.
type document struct {
	desc   ocispec.Descriptor
	data   []byte
	labels map[string]string
}

// found is an image for this machine: what a name leads to, checked, before any layer is fetched.
type found struct {
	config      ocispec.Image
	id          digest.Digest // of the config; of an artifact, whose config says nothing, that of the manifest
	layers      []ocispec.Descriptor
	diffs       []digest.Digest // of each layer, unpacked
	chain       []digest.Digest // chain ID of each layer
	files       []string        // of an artifact: the file that each layer is
	annotations map[string]string
	documents   []document // config, manifest, then indexes from the inside out
}

// chainID is that of the whole image; empty without layers.
func (f *found) chainID() digest.Digest {
	if len(f.chain) == 0 {
		return ""
	}
	return f.chain[len(f.chain)-1]
}

// picker walks from a target to the image for a platform.
type picker struct {
	platform platforms.MatchComparer
	read     func(context.Context, ocispec.Descriptor) ([]byte, error)
	reads    int
}

func (p *picker) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if p.reads++; p.reads > maxDocuments {
		return nil, fmt.Errorf("no image found after %d documents: %w", maxDocuments, errRefused)
	}
	if err := checkDescriptor(desc); err != nil {
		return nil, err
	}
	if desc.Size > maxDocument {
		return nil, fmt.Errorf("%s has %d bytes, more than %d: %w", desc.Digest, desc.Size, maxDocument, errRefused)
	}
	data, err := p.read(ctx, desc)
	if err != nil {
		return nil, err
	}
	return data, nil
}

// pick returns the image that desc leads to; errPlatform if there is none for this machine.
func (p *picker) pick(ctx context.Context, desc ocispec.Descriptor, depth int) (*found, error) {
	switch {
	case images.IsIndexType(desc.MediaType):
		if depth >= maxIndexDepth {
			return nil, fmt.Errorf("%s: indexes nested more than %d deep: %w", desc.Digest, maxIndexDepth, errRefused)
		}
		return p.index(ctx, desc, depth)
	case images.IsManifestType(desc.MediaType):
		return p.manifest(ctx, desc)
	case strings.HasPrefix(desc.MediaType, "application/vnd.docker.distribution.manifest.v1"):
		return nil, fmt.Errorf("%s is of Docker schema 1, which is no longer supported: push the image anew with a current tool: %w", desc.Digest, errdefs.ErrNotImplemented)
	}
	return nil, fmt.Errorf("%s is no container image: media type %q: %w", desc.Digest, desc.MediaType, errRefused)
}

// body is a manifest or an index, whichever it turns out to be.
type body struct {
	MediaType   string               `json:"mediaType"`
	Config      *ocispec.Descriptor  `json:"config"`
	Layers      []ocispec.Descriptor `json:"layers"`
	Manifests   []ocispec.Descriptor `json:"manifests"`
	FSLayers    json.RawMessage      `json:"fsLayers"`
	Annotations map[string]string    `json:"annotations"`
}

func parseBody(desc ocispec.Descriptor, data []byte) (*body, error) {
	var b body
	if err := decode(data, &b); err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	if b.MediaType != "" && b.MediaType != desc.MediaType {
		return nil, fmt.Errorf("%s calls itself %q but was announced as %q: %w", desc.Digest, b.MediaType, desc.MediaType, errRefused)
	}
	return &b, nil
}

// decode reads a JSON object that has one meaning only: encoding/json takes the last of two equal keys and does not
// tell upper from lower case, other parsers do otherwise (CVE-2021-41190 is of that family).
func decode(data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("not valid JSON: %v: %w", err, errRefused)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("not a JSON object: %w", errRefused)
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return fmt.Errorf("not valid JSON: %v: %w", err, errRefused)
		}
		key, _ := t.(string)
		if seen[strings.ToLower(key)] {
			return fmt.Errorf("key %q stands twice: %w", key, errRefused)
		}
		seen[strings.ToLower(key)] = true
		var skip json.RawMessage
		if err := d.Decode(&skip); err != nil {
			return fmt.Errorf("not valid JSON: %v: %w", err, errRefused)
		}
	}
	return nil
}

// index tries the entries for this platform, the best first, then those that do not say their platform.
func (p *picker) index(ctx context.Context, desc ocispec.Descriptor, depth int) (*found, error) {
	data, err := p.document(ctx, desc)
	if err != nil {
		return nil, err
	}
	b, err := parseBody(desc, data)
	switch {
	case err != nil:
		return nil, err
	case b.Layers != nil || b.Config != nil || b.FSLayers != nil:
		return nil, fmt.Errorf("%s is an index and a manifest at once: %w", desc.Digest, errRefused)
	case len(b.Manifests) > maxIndexSize:
		return nil, fmt.Errorf("%s has %d entries, more than %d: %w", desc.Digest, len(b.Manifests), maxIndexSize, errRefused)
	}
	for _, i := range p.candidates(b.Manifests) {
		f, err := p.pick(ctx, b.Manifests[i], depth+1)
		if errors.Is(err, errPlatform) {
			continue
		}
		if err != nil {
			return nil, err
		}
		label := fmt.Sprint(labelManifest, i)
		f.documents = append(f.documents, document{desc, data, map[string]string{label: b.Manifests[i].Digest.String()}})
		return f, nil
	}
	return nil, fmt.Errorf("%s has none for %s, only for: %s: %w", desc.Digest, platforms.Format(platforms.DefaultSpec()), offered(b.Manifests), errPlatform)
}

// candidates returns the positions of entries worth a try, best first.
func (p *picker) candidates(entries []ocispec.Descriptor) []int {
	var known, unknown []int
	for i, m := range entries {
		switch {
		case m.Platform == nil && (images.IsIndexType(m.MediaType) || images.IsManifestType(m.MediaType)):
			unknown = append(unknown, i)
		case m.Platform != nil && p.platform.Match(*m.Platform):
			known = append(known, i)
		}
	}
	slices.SortStableFunc(known, func(a, b int) int {
		pa, pb := *entries[a].Platform, *entries[b].Platform
		switch {
		case p.platform.Less(pa, pb):
			return -1
		case p.platform.Less(pb, pa):
			return 1
		}
		return 0
	})
	return append(known, unknown...)
}

// offered names the platforms of an index for an error, a few of them.
func offered(entries []ocispec.Descriptor) string {
	names := map[string]bool{}
	for _, m := range entries {
		if m.Platform != nil && len(names) < 16 {
			names[platforms.Format(*m.Platform)] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(names)), ", ")
}

func (p *picker) manifest(ctx context.Context, desc ocispec.Descriptor) (*found, error) {
	data, err := p.document(ctx, desc)
	if err != nil {
		return nil, err
	}
	b, err := parseBody(desc, data)
	switch {
	case err != nil:
		return nil, err
	case b.Manifests != nil || b.FSLayers != nil:
		return nil, fmt.Errorf("%s is a manifest and something else at once: %w", desc.Digest, errRefused)
	case b.Config == nil:
		return nil, fmt.Errorf("%s has no config: %w", desc.Digest, errRefused)
	case !images.IsConfigType(b.Config.MediaType):
		return p.artifact(ctx, document{desc: desc, data: data}, b)
	}
	if err := checkLayers(b); err != nil {
		return nil, fmt.Errorf("%s: %w", desc.Digest, err)
	}
	f := &found{id: b.Config.Digest, layers: b.Layers, annotations: b.Annotations}
	configData, err := p.readConfig(ctx, desc, *b.Config, f)
	if err != nil {
		return nil, err
	}
	configLabels := map[string]string{}
	if id := f.chainID(); id != "" {
		configLabels[labelSnapshot] = id.String()
	}
	f.documents = []document{
		{*b.Config, configData, configLabels},
		{desc, data, map[string]string{labelConfig: b.Config.Digest.String()}},
	}
	return f, nil
}

// checkLayers looks at the descriptors of a manifest.
func checkLayers(b *body) error {
	if err := checkDescriptor(*b.Config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if len(b.Layers) > maxLayers {
		return fmt.Errorf("%d layers, more than %d: %w", len(b.Layers), maxLayers, errRefused)
	}
	for i, l := range b.Layers {
		if err := checkDescriptor(l); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		if l.Digest == b.Config.Digest {
			return fmt.Errorf("layer %d is also the config: %w", i, errRefused)
		}
		if _, err := layerCompression(l.MediaType); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return nil
}

// readConfig fills in what the config says. A manifest that an index did not offer for this platform must
// have a config that fits.
func (p *picker) readConfig(ctx context.Context, manifest, desc ocispec.Descriptor, f *found) ([]byte, error) {
	data, err := p.document(ctx, desc)
	if err != nil {
		return nil, err
	}
	if err := decode(data, &f.config); err != nil {
		return nil, fmt.Errorf("config %s: %w", desc.Digest, err)
	}
	if manifest.Platform == nil && f.config.OS != "" && f.config.Architecture != "" && !p.platform.Match(platforms.Normalize(f.config.Platform)) {
		return nil, fmt.Errorf("%s is for %s, this machine is %s: %w", manifest.Digest,
			platforms.Format(f.config.Platform), platforms.Format(platforms.DefaultSpec()), errPlatform)
	}
	diffs := f.config.RootFS.DiffIDs
	if len(diffs) != len(f.layers) {
		return nil, fmt.Errorf("config %s names %d layers, the manifest %d: %w", desc.Digest, len(diffs), len(f.layers), errRefused)
	}
	for i, d := range diffs {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("config %s: diff ID %d is no digest: %w", desc.Digest, i, errRefused)
		}
	}
	f.diffs, f.chain = diffs, identity.ChainIDs(slices.Clone(diffs))
	return data, nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return fmt.Errorf("%.80q is no digest: %w", d.Digest, errRefused)
	}
	if d.Size <= 0 {
		return fmt.Errorf("%s has size %d: %w", d.Digest, d.Size, errRefused)
	}
	return nil
}

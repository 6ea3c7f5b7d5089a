package imagesvc

import (
	"context"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// catalog is the set of images in memory. What it holds stands in the database too, and was written there first.
type catalog struct {
	mu     sync.RWMutex
	names  map[string]name
	images map[digest.Digest]*Image // Tags and Digests follow names
}

// name is one reference and what it points to.
type name struct {
	id     digest.Digest // of the image
	target digest.Digest // manifest or index
}

func newCatalog() *catalog {
	return &catalog{names: map[string]name{}, images: map[digest.Digest]*Image{}}
}

// add points names at an image. Names that pointed elsewhere move.
func (c *catalog) add(img Image, target digest.Digest, refs ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	touched := map[digest.Digest]bool{img.ID: true}
	c.images[img.ID] = &img
	for _, ref := range refs {
		touched[c.names[ref].id] = true
		c.names[ref] = name{img.ID, target}
	}
	for id := range touched {
		c.relabel(id)
	}
}

// relabel replaces an image by a copy with the names that it has now.
func (c *catalog) relabel(id digest.Digest) {
	old := c.images[id]
	if old == nil {
		return
	}
	img := *old
	img.Tags, img.Digests = nil, nil
	for ref, n := range c.names {
		switch {
		case n.id != id:
		case strings.Contains(ref, "@"):
			img.Digests = append(img.Digests, ref)
		default:
			img.Tags = append(img.Tags, ref)
		}
	}
	slices.Sort(img.Tags)
	slices.Sort(img.Digests)
	c.images[id] = &img
}

// drop forgets an image with all its names.
func (c *catalog) drop(id digest.Digest) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.names, func(_ string, n name) bool { return n.id == id })
	delete(c.images, id)
}

func (c *catalog) has(id digest.Digest) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.images[id] != nil
}

// target says what a name points to.
func (c *catalog) target(ref string) (name, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n, ok := c.names[ref]
	return n, ok
}

// idPattern is an image ID or the beginning of one.
var idPattern = regexp.MustCompile(`^(sha256:)?[0-9a-f]{1,64}$`)

func (c *catalog) find(refOrID string) (*Image, error) {
	if refOrID == "" {
		return nil, fmt.Errorf("the image reference is empty: %w", errdefs.ErrInvalidArgument)
	}
	named, nameErr := normalize(refOrID)
	prefix := idPattern.MatchString(refOrID)
	if nameErr != nil && !prefix {
		return nil, nameErr
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if nameErr == nil {
		if n, ok := c.names[named.String()]; ok {
			return c.images[n.id], nil
		}
	}
	if prefix {
		if img, err := c.byPrefix("sha256:" + strings.TrimPrefix(refOrID, "sha256:")); img != nil || err != nil {
			return img, err
		}
	}
	return nil, fmt.Errorf("image %q: %w", refOrID, errdefs.ErrNotFound)
}

func (c *catalog) byPrefix(prefix string) (*Image, error) {
	if img := c.images[digest.Digest(prefix)]; img != nil {
		return img, nil
	}
	var match *Image
	for id, img := range c.images {
		if strings.HasPrefix(id.String(), prefix) {
			if match != nil {
				return nil, fmt.Errorf("image ID %q is the beginning of several, give more of it: %w", prefix, errdefs.ErrInvalidArgument)
			}
			match = img
		}
	}
	return match, nil
}

// normalize completes a reference as docker does: docker.io, library/, :latest. Of tag and digest the digest wins, and the tag,
// which nobody checked, is dropped (IM-01).
func normalize(ref string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("image reference %.200q: %w: %w", ref, err, errdefs.ErrInvalidArgument)
	}
	return named, nil
}

// Image finds an image by tag, digest reference, ID ("sha256:..." or bare hex) or an unambiguous prefix of the ID
// (ErrNotFound, ErrInvalidArgument). It reads memory only.
func (s *Service) Image(refOrID string) (Image, error) {
	img, err := s.catalog.find(refOrID)
	if err != nil {
		return Image{}, err
	}
	return s.pinned(*img), nil
}

// Images returns all images, sorted by ID.
func (s *Service) Images() []Image {
	s.catalog.mu.RLock()
	defer s.catalog.mu.RUnlock()
	all := make([]Image, 0, len(s.catalog.images))
	for _, id := range slices.Sorted(maps.Keys(s.catalog.images)) {
		all = append(all, s.pinned(*s.catalog.images[id]))
	}
	return all
}

// pinned fills in whether a pattern of the configuration matches a name of the image.
func (s *Service) pinned(img Image) Image {
	patterns := s.opts.Load().Pinned
	matches := func(ref string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool {
			ok, err := path.Match(p, ref)
			return ok && err == nil || p == ref
		})
	}
	img.Pinned = slices.ContainsFunc(img.Tags, matches) || slices.ContainsFunc(img.Digests, matches)
	return img
}

// Remove removes the image with all its names. An image that is not there is no error. Layers in use by Use stay on
// disk until Release; everything else is freed before Remove returns.
func (s *Service) Remove(ctx context.Context, refOrID string) error {
	img, err := s.Image(refOrID)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := s.removeNames(inNamespace(ctx), img.ID); err != nil {
		return fmt.Errorf("removing image %s: %w", img.ID, err)
	}
	if err := s.dropUnused(s.ctx, img.ID); err != nil {
		s.log.WithError(err).WithField("image", img.ID).Warn("the layers of a removed image stay until the next removal")
	}
	return nil
}

func (s *Service) removeNames(ctx context.Context, id digest.Digest) error {
	s.recordMu.Lock()
	defer s.recordMu.Unlock()
	img, err := s.catalog.find(id.String())
	if errdefs.IsNotFound(err) {
		return nil // somebody else removed it
	}
	if err != nil {
		return err
	}
	err = s.store.atomically(ctx, func(ctx context.Context) error {
		for _, ref := range slices.Concat(img.Tags, img.Digests) {
			if err := s.store.images.Delete(ctx, ref); err != nil && !errdefs.IsNotFound(err) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.catalog.drop(id)
	return nil
}

// record writes an image down, whose layers are on disk, and makes it visible. Each document is on disk before
// the database refers to it; the names come with them in one transaction.
func (s *Service) record(ctx context.Context, f *found, target ocispec.Descriptor, refs []string) (Image, error) {
	s.recordMu.Lock()
	defer s.recordMu.Unlock()
	img, err := s.describe(ctx, f)
	if err != nil {
		return Image{}, err
	}
	err = s.store.atomically(ctx, func(ctx context.Context) error {
		for _, d := range f.documents {
			if err := s.store.put(ctx, d); err != nil {
				return err
			}
		}
		for _, ref := range refs {
			if err := s.store.setName(ctx, ref, target); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Image{}, err
	}
	s.catalog.add(img, target.Digest, refs...)
	s.usage.forget()
	return s.Image(img.ID.String())
}

// describe makes the Image of what was found, without names. Its size is what its removal would free if it shared no layer.
func (s *Service) describe(ctx context.Context, f *found) (Image, error) {
	img := Image{ID: f.id, ChainID: f.chainID(), Config: f.config, Annotations: f.annotations, Artifact: f.files != nil}
	for _, d := range f.documents {
		img.Size += int64(len(d.data))
	}
	for _, id := range f.chain {
		size, err := s.store.layerSize(ctx, id)
		if err != nil {
			return Image{}, err
		}
		img.Size += size
	}
	return img, nil
}

// loadImages fills the catalog from the database. A name whose image is damaged or not unpacked is removed if it is ours, and
// will be pulled again; others (of a build) are left alone.
func (s *Service) loadImages(ctx context.Context) error {
	all, err := s.store.images.List(ctx)
	if err != nil {
		return fmt.Errorf("listing images: %w", err)
	}
	for _, rec := range all {
		err := s.loadImage(ctx, rec)
		if err == nil {
			continue
		}
		s.log.WithError(err).WithField("image", rec.Name).Error("this image cannot be used and has to be pulled again")
		if _, ours := rec.Labels[labelOurs]; !ours {
			continue
		}
		if err := s.store.images.Delete(ctx, rec.Name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("removing image %s: %w", rec.Name, err)
		}
	}
	return nil
}

func (s *Service) loadImage(ctx context.Context, rec images.Image) error {
	p := &picker{platform: s.platform, read: s.store.read}
	f, err := p.pick(ctx, rec.Target, 0)
	if err != nil {
		return err
	}
	img, err := s.describe(ctx, f)
	if err != nil {
		return err
	}
	s.catalog.add(img, rec.Target.Digest, rec.Name)
	return nil
}

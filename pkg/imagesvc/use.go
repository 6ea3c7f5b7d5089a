package imagesvc

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// usePrefix begins the keys of the views by which images in use are kept; the image ID follows.
const usePrefix = "criserver-use-"

// uses remembers which images containers use. Each has one read-only view in the snapshotter, which keeps the
// layers from garbage collection across restarts and yields their directories.
type uses struct {
	mu  sync.Mutex
	all map[digest.Digest]*use
}

type use struct {
	count int      // 0: kept for the next user as long as the image is there
	dirs  []string // topmost first
}

// take counts one more use if the view exists.
func (u *uses) take(id digest.Digest) ([]string, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	e := u.all[id]
	if e == nil {
		return nil, false
	}
	e.count++
	return e.dirs, true
}

func (u *uses) put(id digest.Digest, e *use) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.all == nil {
		u.all = map[digest.Digest]*use{}
	}
	u.all[id] = e
}

// forget takes the view of an image out if nobody uses it.
func (u *uses) forget(id digest.Digest) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if e := u.all[id]; e == nil || e.count > 0 {
		return false
	}
	delete(u.all, id)
	return true
}

// Use keeps the image's layers and returns their directories, topmost first (overlay's lowerdir order). The first use of an image
// writes to the database; later ones touch memory only. The slice is shared: read it only.
func (s *Service) Use(ctx context.Context, id digest.Digest) ([]string, error) {
	if dirs, ok := s.uses.take(id); ok {
		return dirs, nil
	}
	release, err := s.locks.acquire(ctx, usePrefix+id.String())
	if err != nil {
		return nil, fmt.Errorf("using image %s: %w", id, err)
	}
	defer release()
	if dirs, ok := s.uses.take(id); ok {
		return dirs, nil
	}
	img, err := s.catalog.find(id.String())
	if err != nil {
		return nil, err
	}
	root := snapshots.WithLabels(map[string]string{labelRoot: "true"})
	mounts, err := s.store.snaps.View(inNamespace(ctx), usePrefix+id.String(), img.ChainID.String(), root)
	if err != nil {
		return nil, fmt.Errorf("using image %s: %w", id, err)
	}
	_, dirs, err := layerDirs(mounts)
	if err != nil {
		return nil, err
	}
	s.uses.put(id, &use{count: 1, dirs: dirs})
	return dirs, nil
}

// Release ends one Use. The layers of an image that was removed meanwhile go with the last one, in the background.
func (s *Service) Release(id digest.Digest) {
	s.uses.mu.Lock()
	e := s.uses.all[id]
	if e != nil && e.count > 0 {
		e.count--
	}
	last := e != nil && e.count == 0
	s.uses.mu.Unlock()
	if last && !s.catalog.has(id) {
		s.background(func() {
			if err := s.dropUnused(s.ctx, id); err != nil {
				s.log.WithError(err).WithField("image", id).Warn("the layers of a removed image stay until the next removal")
			}
		})
	}
}

// Retain is told once, after recovery, how often each image is in use; what else earlier uses kept is let go.
func (s *Service) Retain(ctx context.Context, counts map[digest.Digest]int) error {
	ctx = inNamespace(ctx)
	s.uses.mu.Lock()
	var idle []digest.Digest
	for id, e := range s.uses.all {
		if e.count = counts[id]; e.count <= 0 {
			e.count = 0
			idle = append(idle, id)
		}
	}
	known := maps.Clone(s.uses.all)
	s.uses.mu.Unlock()
	for id := range counts {
		if known[id] == nil {
			s.log.WithField("image", id).Warn("an image in use is not in the store; its containers cannot be started again")
		}
	}
	for _, id := range idle {
		if err := s.dropView(ctx, id); err != nil {
			return fmt.Errorf("letting go of image %s: %w", id, err)
		}
	}
	if len(idle) == 0 {
		return nil
	}
	return s.store.collect(ctx)
}

// dropUnused frees an image's layers unless they are in use.
func (s *Service) dropUnused(ctx context.Context, id digest.Digest) error {
	if err := s.dropView(ctx, id); err != nil {
		return err
	}
	err := s.store.collect(ctx)
	s.usage.forget()
	return err
}

// dropView removes the view of an image that nobody uses.
func (s *Service) dropView(ctx context.Context, id digest.Digest) error {
	release, err := s.locks.acquire(ctx, usePrefix+id.String())
	if err != nil {
		return err
	}
	defer release()
	if !s.uses.forget(id) {
		return nil
	}
	if err := s.store.snaps.Remove(ctx, usePrefix+id.String()); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}

// loadUses reads the views that an earlier process left. They count nothing until Retain says so.
func (s *Service) loadUses(ctx context.Context) error {
	var keys []string
	err := s.store.snaps.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindView && strings.HasPrefix(info.Name, usePrefix) {
			keys = append(keys, info.Name)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("listing images in use: %w", err)
	}
	for _, key := range slices.Sorted(slices.Values(keys)) {
		mounts, err := s.store.snaps.Mounts(ctx, key)
		if err != nil {
			return fmt.Errorf("image in use %s: %w", key, err)
		}
		_, dirs, err := layerDirs(mounts)
		if err != nil {
			return err
		}
		s.uses.put(digest.Digest(strings.TrimPrefix(key, usePrefix)), &use{dirs: dirs})
	}
	return nil
}

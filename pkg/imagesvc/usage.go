package imagesvc

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"
)

// usageCache holds the last sum until something changes.
type usageCache struct {
	mu    sync.Mutex
	valid bool
	sum   Usage
}

func (c *usageCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.valid = false
}

// blockSize rounds the size of documents up to what they take; layers are counted in blocks when they are made.
const blockSize = 4096

// FSUsage says what images occupy: layers and documents, in blocks and inodes. The figures of a layer were taken when it was
// unpacked, so nothing is walked; the sum is made anew only after a change.
func (s *Service) FSUsage(ctx context.Context) (Usage, error) {
	s.usage.mu.Lock()
	defer s.usage.mu.Unlock()
	if !s.usage.valid {
		sum, err := s.store.usage(inNamespace(ctx))
		if err != nil {
			return Usage{}, fmt.Errorf("usage of images: %w", err)
		}
		s.usage.sum, s.usage.valid = sum, true
	}
	u, err := UsageOn(filepath.Join(s.store.root, "snapshots"))
	u.Bytes, u.Inodes = s.usage.sum.Bytes, s.usage.sum.Inodes
	return u, err
}

// UsageOn is nothing, now, on the filesystem of a directory.
func UsageOn(dir string) (Usage, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return Usage{}, fmt.Errorf("filesystem of %s: %w", dir, err)
	}
	return Usage{Path: dir, Device: st.Dev, At: time.Now()}, nil
}

// usage has the sums alone.
func (st *store) usage(ctx context.Context) (Usage, error) {
	var u Usage
	var layers []string
	err := st.snaps.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			layers = append(layers, info.Name)
		}
		return nil
	})
	if err != nil {
		return u, err
	}
	for _, key := range layers {
		l, err := st.snaps.Usage(ctx, key)
		if err != nil {
			return u, err
		}
		u.Bytes += uint64(l.Size)
		u.Inodes += uint64(l.Inodes)
	}
	err = st.content.Walk(ctx, func(info content.Info) error {
		u.Bytes += uint64(info.Size+blockSize-1) / blockSize * blockSize
		u.Inodes++
		return nil
	})
	return u, err
}

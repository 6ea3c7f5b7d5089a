package imagesvc

import (
	"fmt"
	"math"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// What an image may ask of this machine. The figures are far above what real images have and far below what hurts.
const (
	maxDocument   = 4 << 20 // bytes of an index, manifest or config (OCI distribution spec, "Pushing Manifests", names 4 MiB)
	maxIndexDepth = 4       // indexes within indexes
	maxIndexSize  = 1000    // entries of one index
	maxDocuments  = 32      // documents fetched to find one image
	maxLayers     = 500     // overlayfs takes 500 lower directories (OVL_MAX_STACK)

	maxToken   = 1 << 20   // bytes of a token server's answer
	maxHeaders = 1 << 20   // bytes of the headers of an answer
	maxWindow  = 128 << 20 // bytes of memory that a zstd frame may ask for (what the zstd tool allows by default)

	// A layer may unpack to bombFloor + bombRatio times its compressed size: deflate packs at most 1:1032 and real layers hardly 1:20.
	bombFloor = 1 << 30
	bombRatio = 100

	// Free space that stays: a share of the filesystem, but no more than keepBytes.
	keepShare  = 20 // a 20th
	keepBytes  = 1 << 30
	keepInodes = 4096
)

// unpackLimit is how many bytes a layer of that compressed size may become.
func unpackLimit(compressed int64) int64 {
	if compressed > (math.MaxInt64-bombFloor)/bombRatio {
		return math.MaxInt64
	}
	return bombFloor + bombRatio*compressed
}

// checkRoom refuses need more bytes on the filesystem of dir where they would leave too little: a
// node with a full disk loses its pods, while a pull can be tried again.
func checkRoom(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", dir, err)
	}
	free, total := int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	keep := min(total/keepShare, keepBytes)
	if need < 0 || free-keep < need {
		return fmt.Errorf("%s has %d bytes free: %d more would leave less than %d; remove images or make room: %w",
			dir, free, need, keep, errdefs.ErrResourceExhausted)
	}
	if st.Files > 0 && st.Ffree < keepInodes {
		return fmt.Errorf("%s has only %d inodes free; remove images or files: %w", dir, st.Ffree, errdefs.ErrResourceExhausted)
	}
	return nil
}

package imagesvc

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// compression is how a layer's archive is packed.
type compression int

const (
	plainTar compression = iota
	gzipTar
	zstdTar
)

// layerCompression reads the media type of a layer: those of the OCI image spec and docker's, foreign layers included.
func layerCompression(mediaType string) (compression, error) {
	switch mediaType {
	case ocispec.MediaTypeImageLayer, images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerForeign,
		"application/vnd.oci.image.layer.nondistributable.v1.tar":
		return plainTar, nil
	case ocispec.MediaTypeImageLayerGzip, images.MediaTypeDockerSchema2LayerGzip, images.MediaTypeDockerSchema2LayerForeignGzip,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip":
		return gzipTar, nil
	case ocispec.MediaTypeImageLayerZstd, images.MediaTypeDockerSchema2LayerZstd,
		"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd":
		return zstdTar, nil
	}
	if strings.HasSuffix(mediaType, "+encrypted") {
		return 0, fmt.Errorf("encrypted layers are not supported: %w", errRefused)
	}
	return 0, fmt.Errorf("media type %q is not that of a layer: %w", mediaType, errRefused)
}

// unpacked returns the archive inside r. Contents that are not packed as announced are an error here or at the first Read.
func (c compression) unpacked(r io.Reader) (io.ReadCloser, error) {
	switch c {
	case gzipTar:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, fmt.Errorf("the layer is not gzip: %w: %w", err, errRefused)
		}
		return z, nil
	case zstdTar:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, fmt.Errorf("the layer is not zstd: %w: %w", err, errRefused)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// readAhead reads src in a goroutine of its own, so that unpacking and hashing use another processor than
// the writing of files. It refuses more than limit bytes.
type readAhead struct {
	full, empty chan []byte
	stop        chan struct{}
	ended       chan struct{}
	buf, rest   []byte
	err         error // set before full is closed
}

const aheadBuffers, aheadSize = 4, 256 << 10

func newReadAhead(src io.Reader, sum hash.Hash, limit int64) *readAhead {
	r := &readAhead{full: make(chan []byte, aheadBuffers), empty: make(chan []byte, aheadBuffers), stop: make(chan struct{}), ended: make(chan struct{})}
	for range aheadBuffers {
		r.empty <- make([]byte, aheadSize)
	}
	go r.run(src, sum, limit)
	return r
}

func (r *readAhead) run(src io.Reader, sum hash.Hash, limit int64) {
	defer close(r.ended)
	defer close(r.full)
	defer rescue(&r.err)
	for {
		var buf []byte
		select {
		case buf = <-r.empty:
		case <-r.stop:
			return
		}
		n, err := fill(src, buf[:cap(buf)])
		if limit -= int64(n); limit < 0 {
			r.err = fmt.Errorf("the layer unpacks to more than its size allows: %w", errRefused)
			return
		}
		sum.Write(buf[:n])
		if n > 0 {
			r.full <- buf[:n] // never blocks: there are as many places as buffers
		}
		if err != nil {
			r.err = err
			return
		}
	}
}

// fill reads until p is full or src ends, and says how it ended. (io.ReadFull reports an end and a premature end alike.)
func fill(src io.Reader, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = src.Read(p[n:])
		n += m
	}
	return n, err
}

func (r *readAhead) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.buf != nil {
			r.empty <- r.buf
			r.buf = nil
		}
		buf, ok := <-r.full
		if !ok {
			return 0, r.err
		}
		r.buf, r.rest = buf, buf
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// Close waits for the goroutine; src must be able to end.
func (r *readAhead) Close() error {
	close(r.stop)
	<-r.ended
	return nil
}

// errLinkBelow: the archive has a hard link to a file of a layer below, which takes the kernel's copy-up to make.
var errLinkBelow = errors.New("hard link into a lower layer")

const (
	whiteoutPrefix = ".wh."         // OCI image spec, layer.md, "Whiteouts"
	opaqueWhiteout = ".wh..wh..opq" // "Opaque Whiteout"
	auxPrefix      = ".wh..wh."     // aufs's own files, never part of an image
	xattrPrefix    = "SCHILY.xattr."
)

// layerFilter looks at each entry before containerd's archive package acts on it.
type layerFilter struct {
	root    string
	lower   []string // topmost first
	merged  bool     // root is the mounted overlay, not the layer alone
	left    int64
	entries int
}

// roomEvery is after how many entries the free space is looked at.
const roomEvery = 1024

func (f *layerFilter) accept(h *tar.Header) (bool, error) {
	f.entries++
	if h.Size < 0 || h.Size > f.left {
		return false, fmt.Errorf("entry %.120q of %d bytes: the layer unpacks to more than its size allows: %w", h.Name, h.Size, errRefused)
	}
	f.left -= h.Size // of a sparse file this is the length, and holes are written as zeros
	if f.entries%roomEvery == 1 || h.Size >= 1<<20 {
		if err := checkRoom(f.root, h.Size); err != nil {
			return false, err
		}
	}
	dropOverlayXattrs(h)
	switch h.Typeflag {
	case tar.TypeChar:
		// To overlayfs a device 0:0 is a whiteout. In an archive only .wh. names are.
		return h.Devmajor != 0 || h.Devminor != 0, nil
	case tar.TypeLink:
		return f.link(h)
	}
	return true, nil
}

// dropOverlayXattrs removes what would steer overlayfs: a redirect in a layer shows any directory of any layer at another place.
func dropOverlayXattrs(h *tar.Header) {
	for key := range h.PAXRecords {
		name, ok := strings.CutPrefix(key, xattrPrefix)
		if ok && (strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "user.overlay.")) {
			delete(h.PAXRecords, key)
		}
	}
}

// link finds out whether the target of a hard link is in this layer.
func (f *layerFilter) link(h *tar.Header) (bool, error) {
	if len(f.lower) == 0 || f.merged {
		return true, nil
	}
	root, err := os.OpenRoot(f.root)
	if err != nil {
		return false, err
	}
	defer root.Close()
	name := strings.TrimPrefix(filepath.Clean("/"+h.Linkname), "/")
	if _, err := root.Lstat(name); errors.Is(err, os.ErrNotExist) {
		return false, errLinkBelow
	}
	return true, nil // if it cannot be made, the archive package says why
}

// whiteout turns OCI's whiteouts into overlayfs's. A whiteout hides only what is below: a file that this layer brings stays.
func (f *layerFilter) whiteout(h *tar.Header, path string) (bool, error) {
	dir, base := filepath.Split(path)
	switch {
	case !strings.HasPrefix(base, whiteoutPrefix):
		return true, nil
	case len(f.lower) == 0:
		return false, nil
	case base == opaqueWhiteout:
		return false, unix.Setxattr(dir, "trusted.overlay.opaque", []byte("y"), 0)
	case strings.HasPrefix(base, auxPrefix):
		return false, nil
	}
	hidden := filepath.Join(dir, strings.TrimPrefix(base, whiteoutPrefix))
	if !f.below(hidden) {
		return false, nil
	}
	err := unix.Mknodat(unix.AT_FDCWD, hidden, unix.S_IFCHR, 0)
	if errors.Is(err, unix.EEXIST) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("whiteout of %s: %w", hidden, err)
	}
	return false, os.Lchown(hidden, h.Uid, h.Gid)
}

// below says whether a lower layer has the path. A whiteout of nothing would be seen as a device by who lists the directory,
// if that directory is in this layer alone.
func (f *layerFilter) below(path string) bool {
	name, err := filepath.Rel(f.root, path)
	if err != nil {
		return false
	}
	for _, dir := range f.lower {
		root, err := os.OpenRoot(dir)
		if err != nil {
			continue
		}
		_, err = root.Lstat(name)
		root.Close()
		if err == nil {
			return true
		}
	}
	return false
}

// applyAlone unpacks an archive into the upper directory of a layer, without mounting it. lower are the directories below, topmost first.
func applyAlone(ctx context.Context, upper string, lower []string, r io.Reader, limit int64) error {
	f := &layerFilter{root: upper, lower: lower, left: limit}
	_, err := archive.Apply(quiet(ctx), upper, r, archive.WithFilter(f.accept), archive.WithConvertWhiteout(f.whiteout), archive.WithParents(lower))
	return err
}

// applyMerged unpacks an archive into a mounted overlay; the kernel copies up what is linked to.
func applyMerged(ctx context.Context, merged string, r io.Reader, limit int64) error {
	f := &layerFilter{root: merged, merged: true, left: limit}
	_, err := archive.Apply(quiet(ctx), merged, r, archive.WithFilter(f.accept))
	return err
}

// rescue turns a panic in code that reads hostile bytes into an error of this pull.
func rescue(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("the image makes the unpacker panic: %v: %w", r, errRefused)
	}
}

package oci

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Compression of a layer's blob.
type Compression string

const (
	Gzip   Compression = "gzip"
	Zstd   Compression = "zstd"
	Plain  Compression = "none"
	Stored Compression = "stored" // gzip that does not compress
)

var layerTypes = map[Compression]string{
	Gzip:   ocispec.MediaTypeImageLayerGzip,
	Stored: ocispec.MediaTypeImageLayerGzip,
	Zstd:   ocispec.MediaTypeImageLayerZstd,
	Plain:  ocispec.MediaTypeImageLayer,
}

// Layer is a file-system layer that is stored in one or more compressions.
type Layer struct {
	DiffID digest.Digest
	Size   int64 // uncompressed
	blobs  map[Compression]ocispec.Descriptor
}

// Blob describes the layer's blob in a compression that it was stored in.
func (l Layer) Blob(c Compression) ocispec.Descriptor { return l.blobs[c] }

// Claiming is the layer with another descriptor for its gzip blob, true or not.
func (l Layer) Claiming(d ocispec.Descriptor) Layer {
	l.blobs = map[Compression]ocispec.Descriptor{Gzip: d}
	return l
}

// Layer stores what fill writes, in every compression asked for; Gzip if none is.
func (l *Layout) Layer(fill func(t *Tree), as ...Compression) Layer {
	if len(as) == 0 {
		as = []Compression{Gzip}
	}
	layer := Layer{blobs: map[Compression]ocispec.Descriptor{}}
	if l.err != nil {
		return layer
	}
	plain := digest.Canonical.Digester()
	count := &counter{}
	writers := []io.Writer{plain.Hash(), count}
	var blobs []*blobWriter
	for _, c := range as {
		b, err := newBlob(filepath.Join(l.dir, "blobs"), c)
		if err != nil {
			l.check(err)
			return layer
		}
		defer b.discard()
		blobs = append(blobs, b)
		writers = append(writers, b.w)
	}
	t := newTree(io.MultiWriter(writers...))
	fill(t)
	l.check(t.close())
	for _, b := range blobs {
		d, err := b.commit(l)
		l.check(err)
		layer.blobs[b.as] = d
	}
	layer.DiffID, layer.Size = plain.Digest(), count.n
	return layer
}

// blobWriter compresses into a temporary file, which gets its digest as a name in the end.
type blobWriter struct {
	as   Compression
	w    io.WriteCloser // compresses into what follows
	file *os.File
	buf  *bufio.Writer
	sum  digest.Digester
	size *counter
}

func newBlob(dir string, c Compression) (*blobWriter, error) {
	f, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return nil, err
	}
	b := &blobWriter{as: c, file: f, buf: bufio.NewWriterSize(f, 1<<20), sum: digest.Canonical.Digester(), size: &counter{}}
	if b.w, err = compressor(c, io.MultiWriter(b.buf, b.sum.Hash(), b.size)); err != nil {
		b.discard()
		return nil, err
	}
	return b, nil
}

func compressor(c Compression, w io.Writer) (io.WriteCloser, error) {
	switch c {
	case Gzip:
		return gzip.NewWriterLevel(w, gzip.DefaultCompression)
	case Stored:
		return gzip.NewWriterLevel(w, gzip.NoCompression)
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1)) // with more, the bytes would depend on timing
	case Plain:
		return nopCloser{w}, nil
	}
	return nil, fmt.Errorf("no such compression: %q", c)
}

func (b *blobWriter) commit(l *Layout) (ocispec.Descriptor, error) {
	for _, step := range []func() error{b.w.Close, b.buf.Flush, func() error { return b.file.Chmod(0o644) }, b.file.Close} {
		if err := step(); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	d := ocispec.Descriptor{MediaType: layerTypes[b.as], Digest: b.sum.Digest(), Size: b.size.n}
	return d, os.Rename(b.file.Name(), l.BlobPath(d.Digest))
}

// discard removes the temporary file unless it was committed.
func (b *blobWriter) discard() {
	b.file.Close()
	os.Remove(b.file.Name())
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) { c.n += int64(len(p)); return len(p), nil }

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func newTree(w io.Writer) *Tree { return &Tree{tw: tar.NewWriter(w), dirs: map[string]bool{}} }

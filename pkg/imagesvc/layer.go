package imagesvc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/telemetry"
)

// layer is one layer of a pull. Its snapshot is named by its chain ID: digest of it and all below.
type layer struct {
	desc          ocispec.Descriptor
	diff          digest.Digest // of the archive, unpacked
	chain, parent digest.Digest
	file          string // of an artifact: what the layer is called, which is no archive but this file
}

// fetchLayers brings and unpacks what is missing of an image. Layers arrive in parallel; each is unpacked when the one below it is
// done, for directories that a layer does not mention itself take mode and owner from below.
// Pulls that meet at a layer share it: one works, the other finds it done.
func (s *Service) fetchLayers(ctx context.Context, reg *registry, f *found) error {
	have, err := s.present(ctx, f.chain)
	if err != nil || have == len(f.chain) {
		return err
	}
	if err := checkRoom(s.root, compressedSize(f.layers[have:])); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	slots := make(chan struct{}, s.opts.Load().Parallel)
	below := make(chan struct{})
	close(below)
	for i := have; i < len(f.layers); i++ {
		select {
		case slots <- struct{}{}: // taken in order, so that the lowest layers come first
		case <-ctx.Done():
			return endOfGroup(ctx, g)
		}
		l := layer{desc: f.layers[i], diff: f.diffs[i], chain: f.chain[i]}
		if i > 0 {
			l.parent = f.chain[i-1]
		}
		if f.files != nil {
			l.file = f.files[i]
		}
		wait, done := below, make(chan struct{})
		g.Go(func() error {
			if err := s.fetchLayer(ctx, reg, l, wait, func() { <-slots }); err != nil {
				return fmt.Errorf("layer %d: %w", i, err)
			}
			close(done)
			return nil
		})
		below = done
	}
	return g.Wait()
}

func endOfGroup(ctx context.Context, g *errgroup.Group) error {
	if err := g.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

func compressedSize(layers []ocispec.Descriptor) int64 {
	var sum int64
	for _, l := range layers {
		if sum += l.Size; sum < 0 {
			return -1
		}
	}
	return sum
}

// present returns how many layers, from the bottom, stand unpacked.
func (s *Service) present(ctx context.Context, chain []digest.Digest) (int, error) {
	for n := len(chain); n > 0; n-- {
		ok, err := s.store.hasSnapshot(ctx, chain[n-1])
		if err != nil || ok {
			return n, err
		}
	}
	return 0, nil
}

// errTorn: the pieces of an interrupted transfer do not fit together (a registry that answers a request for
// a range with another one). The whole, fetched anew, may be good.
var errTorn = errors.New("the resumed transfer is damaged")

// fetchLayer does one layer. It calls fetched once, when it needs the network no more.
func (s *Service) fetchLayer(ctx context.Context, reg *registry, l layer, below <-chan struct{}, fetched func()) error {
	fetched = sync.OnceFunc(fetched)
	defer fetched()
	release, err := s.locks.acquire(ctx, l.chain.String())
	if err != nil {
		return err
	}
	defer release()
	if ok, err := s.store.hasSnapshot(ctx, l.chain); ok || err != nil {
		return err
	}
	err = s.transfer(ctx, reg, l, below, fetched)
	if errors.Is(err, errTorn) {
		err = s.transfer(ctx, reg, l, below, fetched)
	}
	return err
}

// transfer fetches a layer into a spool and unpacks it from there at the same time.
func (s *Service) transfer(ctx context.Context, reg *registry, l layer, below <-chan struct{}, fetched func()) error {
	sp, err := newSpool(s.tmp())
	if err != nil {
		return err
	}
	defer sp.Close()
	resumed := false
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		ctx, done := telemetry.Stage(ctx, "fetch a layer")
		resumed, err = reg.fetch(ctx, l.desc, sp)
		done(kindOf(err))
		sp.finish(err)
		fetched()
		return err
	})
	g.Go(func() error { return s.unpack(ctx, sp, l, below) })
	err = g.Wait()
	if err != nil && resumed && errors.Is(err, errRefused) {
		return fmt.Errorf("%w: %w", errTorn, err)
	}
	return err
}

// unpack makes the snapshot of a layer once the one below is there.
func (s *Service) unpack(ctx context.Context, sp *spool, l layer, below <-chan struct{}) (err error) {
	defer rescue(&err)
	select {
	case <-below:
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, done := telemetry.Stage(ctx, "unpack a layer")
	defer func() { done(kindOf(err)) }()
	err = s.intoSnapshot(ctx, sp, l, s.applyUnmounted)
	if errors.Is(err, errLinkBelow) {
		err = s.intoSnapshot(ctx, sp, l, s.applyMounted)
	}
	return err
}

// applier unpacks an archive into a snapshot, given as the mounts that would show it. It takes limit bytes at most.
type applier func(ctx context.Context, mounts []mount.Mount, r io.Reader, limit int64) error

// intoSnapshot applies a layer to a new snapshot and commits it once archive and blob have proven right. Until the
// image is recorded only the lease refers to it, so it need not be on disk yet: after a crash it is garbage.
func (s *Service) intoSnapshot(ctx context.Context, sp *spool, l layer, apply applier) (err error) {
	snaps, key := s.store.snaps, unpackPrefix+rand.Text()
	mounts, err := snaps.Prepare(ctx, key, l.parent.String())
	if err != nil {
		return fmt.Errorf("preparing the directory of layer %s: %w", l.desc.Digest, err)
	}
	committed := false
	defer func() {
		if !committed {
			err = joinClose(err, snaps.Remove(context.WithoutCancel(ctx), key))
		}
	}()
	if err := l.extract(ctx, sp, mounts, apply); err != nil {
		return fmt.Errorf("unpacking %s: %w", l.desc.Digest, err)
	}
	err = snaps.Commit(ctx, l.chain.String(), key)
	committed = err == nil
	if errdefs.IsAlreadyExists(err) {
		return nil // another user of the store, such as a build, was faster
	}
	if err != nil {
		return fmt.Errorf("recording layer %s: %w", l.desc.Digest, err)
	}
	return nil
}

// archive is what is unpacked of a blob.
func (l layer) archive(blob io.Reader) (io.ReadCloser, error) {
	if l.file != "" {
		return fileArchive(l.file, l.desc.Size, blob)
	}
	packed, err := layerCompression(l.desc.MediaType)
	if err != nil {
		return nil, err
	}
	return packed.unpacked(blob)
}

// extract applies the archive and compares its digest with the config's. It reads the blob to its end, which
// comes only when that has been verified too.
func (l layer) extract(ctx context.Context, sp *spool, mounts []mount.Mount, apply applier) error {
	readCtx, cancel := context.WithCancel(ctx)
	blob := sp.reader(readCtx)
	tarball, err := l.archive(blob)
	if err != nil {
		cancel()
		return err
	}
	defer tarball.Close()
	limit := unpackLimit(l.desc.Size)
	sum := l.diff.Algorithm().Hash()
	ahead := newReadAhead(tarball, sum, limit)
	defer ahead.Close()
	defer cancel() // first: it lets the reading goroutine end
	if err := apply(ctx, mounts, ahead, limit); err != nil {
		return blameArchive(err)
	}
	for _, r := range []io.Reader{ahead, blob} { // padding of the archive, rest of the blob
		if _, err := io.Copy(io.Discard, r); err != nil {
			return blameArchive(err)
		}
	}
	if got := digest.NewDigest(l.diff.Algorithm(), sum); l.file == "" && got != l.diff {
		return fmt.Errorf("the archive has diff ID %s where the config says %s: %w", got, l.diff, errRefused)
	}
	return nil
}

// blameArchive gives an error of unpacking a kind. What is not a fault of this machine or its network is one of the image.
func blameArchive(err error) error {
	var errno syscall.Errno
	if errors.Is(err, errLinkBelow) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, errdefs.ErrResourceExhausted) || errors.As(err, &errno) || isNetwork(err) || errors.Is(err, errRefused) {
		return err
	}
	return fmt.Errorf("%w: %w", err, errRefused)
}

// layerDirs reads the directories out of the mounts of an overlay snapshot: the one to write to, if there is one,
// and those below, topmost first. A snapshot without lower ones is a bind mount.
func layerDirs(mounts []mount.Mount) (upper string, lower []string, err error) {
	if len(mounts) != 1 {
		return "", nil, fmt.Errorf("a snapshot of %d mounts: %w", len(mounts), errdefs.ErrInternal)
	}
	m := mounts[0]
	switch {
	case m.Type == "bind" && m.ReadOnly():
		return "", []string{m.Source}, nil
	case m.Type == "bind":
		return m.Source, nil, nil
	}
	for _, o := range m.Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = dir
		}
		if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
			lower = strings.Split(dirs, ":")
		}
	}
	return upper, lower, nil
}

// applyUnmounted writes right into the layer's directory.
func (s *Service) applyUnmounted(ctx context.Context, mounts []mount.Mount, r io.Reader, limit int64) error {
	upper, lower, err := layerDirs(mounts)
	if err != nil {
		return err
	}
	return applyAlone(ctx, upper, lower, r, limit)
}

// applyMounted mounts the layer on top of those below for as long as it takes. It costs a mount in the node's table, so it
// is for the rare layer that needs the kernel to copy files up.
func (s *Service) applyMounted(ctx context.Context, mounts []mount.Mount, r io.Reader, limit int64) (err error) {
	dir, err := os.MkdirTemp(s.tmp(), "merged-")
	if err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	defer func() { err = joinClose(err, os.Remove(dir)) }()
	for i := range mounts {
		// A copy without its data, or a renamed directory, would be understood only by a mount with the same options.
		mounts[i].Options = append(mounts[i].Options, "metacopy=off", "redirect_dir=off")
	}
	if err := mount.All(mounts, dir); err != nil {
		return fmt.Errorf("mounting the layer: %w", err)
	}
	defer func() { err = joinClose(err, mount.UnmountAll(dir, unix.UMOUNT_NOFOLLOW)) }()
	return applyMerged(ctx, dir, r, limit)
}

// syncFilesystem writes back all that was written below dir. One call for the filesystem is far cheaper than one
// for each file, and it reports write errors (syncfs(2), since Linux 5.8). It is slow where others write much, so a pull calls it once.
func syncFilesystem(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}

package imagesvc

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/metadata/boltutil"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	bolt "go.etcd.io/bbolt"
)

const (
	// namespace and snapshotter are what containerd's CRI service uses, so that its tools and BuildKit find the same objects.
	namespace   = "k8s.io"
	snapshotter = "overlayfs"

	// Labels by which containerd's garbage collector follows references.
	labelRoot     = "containerd.io/gc.root"
	labelConfig   = "containerd.io/gc.ref.content.config"
	labelManifest = "containerd.io/gc.ref.content.m." // + position in the index
	labelSnapshot = "containerd.io/gc.ref.snapshot." + snapshotter

	// labelDir is where the overlay snapshotter says in which directory a layer is (WithUpperdirLabel).
	labelDir = "containerd.io/snapshot/overlay.upperdir"

	// labelOurs marks the names that this package recorded.
	labelOurs = "criserver.io/image"

	// Keys of what belongs to work under way; whatever has one at Open is a leftover.
	leasePrefix  = "criserver-pull-"
	unpackPrefix = "criserver-unpack-"
)

// store bundles containerd's stores. Every call needs a context from inNamespace.
type store struct {
	root    string
	db      *metadata.DB
	bolt    *bolt.DB
	content content.Store // through db: with labels and leases
	blobs   content.Store // the files themselves
	images  images.Store
	leases  leases.Manager
	snaps   snapshots.Snapshotter // through db
	overlay snapshots.Snapshotter // the directories themselves
}

func inNamespace(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, namespace)
}

// openStore opens the store below root. One that is damaged is set aside, loudly, and a new one begins.
func openStore(ctx context.Context, root string, logger *logrus.Entry) (*store, error) {
	ctx = log.WithLogger(inNamespace(ctx), logger)
	st, err := tryOpenStore(ctx, root)
	if !errors.Is(err, errDamaged) {
		return st, err
	}
	aside, moveErr := setAside(root)
	if moveErr != nil {
		return nil, fmt.Errorf("setting the damaged image store aside: %w (damage: %w)", moveErr, err)
	}
	logger.WithError(err).Errorf("the image store is damaged; it was moved to %s and a new one begins: every image will be pulled again", aside)
	return tryOpenStore(ctx, root)
}

func tryOpenStore(ctx context.Context, root string) (_ *store, err error) {
	st := &store{root: root}
	defer func() {
		if err != nil {
			err = joinClose(err, st.close())
		}
	}()
	if st.blobs, err = local.NewStore(filepath.Join(root, "content")); err != nil {
		return nil, fmt.Errorf("opening the content store: %w", err)
	}
	if st.overlay, err = openOverlay(filepath.Join(root, "snapshots")); err != nil {
		return nil, err
	}
	if st.bolt, err = openBolt(filepath.Join(root, "meta.db")); err != nil {
		return nil, err
	}
	st.db = metadata.NewDB(st.bolt, st.blobs, map[string]snapshots.Snapshotter{snapshotter: st.overlay})
	if err := st.db.Init(ctx); err != nil {
		return nil, fmt.Errorf("preparing %s: %w", st.bolt.Path(), err)
	}
	st.content = st.db.ContentStore()
	st.images = metadata.NewImageStore(st.db)
	st.leases = metadata.NewLeaseManager(st.db)
	st.snaps = st.db.Snapshotter(snapshotter)
	return st, nil
}

// openOverlay opens the snapshotter. Its own database is checked before, since it opens it late and without a way to report damage.
func openOverlay(root string) (snapshots.Snapshotter, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("opening the snapshots: %w", err)
	}
	file := filepath.Join(root, "metadata.db")
	db, err := openBolt(file)
	if err != nil {
		return nil, err
	}
	if err := db.Close(); err != nil {
		return nil, fmt.Errorf("closing %s: %w", file, err)
	}
	meta, err := storage.NewMetaStore(file, func(o *bolt.Options) error { o.Timeout = boltTimeout; return nil })
	if err != nil {
		return nil, fmt.Errorf("opening the snapshots: %w", err)
	}
	sn, err := overlay.NewSnapshotter(root, overlay.WithMetaStore(meta), overlay.WithUpperdirLabel)
	if err != nil {
		return nil, fmt.Errorf("opening the snapshots in %s: %w", root, joinClose(err, meta.Close()))
	}
	return sn, nil
}

// setAside moves the store into damaged-TIME below root and removes what was set aside before, so
// that repeated damage does not fill the disk. Running containers keep the layers that they have mounted.
func setAside(root string) (string, error) {
	old, err := filepath.Glob(filepath.Join(root, "damaged-*"))
	if err != nil {
		return "", err
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return "", err
		}
	}
	aside := filepath.Join(root, "damaged-"+time.Now().UTC().Format("20060102T150405.000"))
	if err := os.Mkdir(aside, 0o700); err != nil {
		return "", err
	}
	for _, name := range []string{"meta.db", "content", "snapshots"} {
		if err := os.Rename(filepath.Join(root, name), filepath.Join(aside, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return aside, nil
}

func (st *store) close() error {
	var err error
	if st.overlay != nil {
		err = joinClose(err, st.overlay.Close())
	}
	if st.bolt != nil {
		err = joinClose(err, st.bolt.Close())
	}
	return err
}

// dropUnfinished removes the leases, ingests and snapshots of work that a death interrupted, and makes
// the next collect look at the directories too: the two databases and the directories are
// not written in one transaction, so each may hold what the other does not know.
func (st *store) dropUnfinished(ctx context.Context) error {
	all, err := st.leases.List(ctx)
	if err != nil {
		return fmt.Errorf("listing leases: %w", err)
	}
	for _, l := range all {
		if strings.HasPrefix(l.ID, leasePrefix) {
			if err := st.leases.Delete(ctx, l); err != nil {
				return fmt.Errorf("dropping lease %s: %w", l.ID, err)
			}
		}
	}
	ingests, err := st.content.ListStatuses(ctx)
	if err != nil {
		return fmt.Errorf("listing ingests: %w", err)
	}
	for _, in := range ingests {
		if err := st.content.Abort(ctx, in.Ref); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("dropping ingest %s: %w", in.Ref, err)
		}
	}
	return st.markDirty(ctx)
}

// markDirty has the garbage collector compare both stores with the database, which it does
// only for a store from which something was removed.
func (st *store) markDirty(ctx context.Context) error {
	if err := st.dropOrphans(ctx); err != nil {
		return fmt.Errorf("removing directories without a record: %w", err)
	}
	key := unpackPrefix + rand.Text()
	if _, err := st.snaps.Prepare(ctx, key, ""); err != nil {
		return fmt.Errorf("probing the snapshots: %w", err)
	}
	if err := st.snaps.Remove(ctx, key); err != nil {
		return fmt.Errorf("probing the snapshots: %w", err)
	}
	probe := []byte(key)
	desc := ocispec.Descriptor{Digest: digest.FromBytes(probe), Size: int64(len(probe))}
	if err := content.WriteBlob(ctx, st.content, key, strings.NewReader(key), desc); err != nil {
		return fmt.Errorf("probing the content store: %w", err)
	}
	if err := st.content.Delete(ctx, desc.Digest); err != nil {
		return fmt.Errorf("probing the content store: %w", err)
	}
	return nil
}

// dropOrphans removes the directories that the snapshotter made without living to record them. They would be in the way of the next ones.
func (st *store) dropOrphans(ctx context.Context) error {
	c, ok := st.overlay.(snapshots.Cleaner)
	if !ok {
		return nil
	}
	err := c.Cleanup(ctx)
	if !errdefs.IsNotFound(err) {
		return err
	}
	// Its database is empty, so whatever is there is an orphan.
	orphans, err := filepath.Glob(filepath.Join(st.root, "snapshots", "snapshots", "*"))
	for _, dir := range orphans {
		err = joinClose(err, os.RemoveAll(dir))
	}
	return err
}

// atomically runs fn with a context under which all writes to the metadata database become one transaction: all of
// them or none, and one wait for the disk instead of one each.
func (st *store) atomically(ctx context.Context, fn func(ctx context.Context) error) error {
	return st.db.Update(func(tx *bolt.Tx) error { return fn(boltutil.WithTransaction(ctx, tx)) })
}

// lease returns a context under which everything that is made is kept from garbage collection until end is called.
func (st *store) lease(ctx context.Context) (_ context.Context, end func() error, _ error) {
	l, err := st.leases.Create(ctx, leases.WithID(leasePrefix+rand.Text()))
	if err != nil {
		return nil, nil, fmt.Errorf("creating a lease: %w", err)
	}
	end = func() error { return st.leases.Delete(context.WithoutCancel(ctx), l) }
	return leases.WithLease(ctx, l.ID), end, nil
}

// hasSnapshot says whether the layer stands unpacked, and if so keeps it for the lease of ctx.
func (st *store) hasSnapshot(ctx context.Context, chain digest.Digest) (bool, error) {
	exists := func() (bool, error) {
		info, err := st.snaps.Stat(ctx, chain.String())
		if errdefs.IsNotFound(err) {
			return false, nil
		}
		return err == nil && info.Kind == snapshots.KindCommitted, err
	}
	ok, err := exists()
	if !ok || err != nil {
		return false, err
	}
	if id, leased := leases.FromContext(ctx); leased {
		r := leases.Resource{ID: chain.String(), Type: "snapshots/" + snapshotter}
		if err := st.leases.AddResource(ctx, leases.Lease{ID: id}, r); err != nil {
			return false, fmt.Errorf("keeping layer %s: %w", chain, err)
		}
	}
	return exists() // it may have been collected in between
}

// layerSize returns what a layer takes on disk, after a look whether its directory is there at all.
func (st *store) layerSize(ctx context.Context, chain digest.Digest) (int64, error) {
	info, err := st.snaps.Stat(ctx, chain.String())
	if err != nil {
		return 0, fmt.Errorf("layer %s: %w", chain, err)
	}
	if _, err := os.Stat(info.Labels[labelDir]); err != nil {
		return 0, fmt.Errorf("layer %s is damaged on disk: %w: %w", chain, err, errdefs.ErrDataLoss)
	}
	u, err := st.snaps.Usage(ctx, chain.String())
	if err != nil {
		return 0, fmt.Errorf("usage of layer %s: %w", chain, err)
	}
	return u.Size, nil
}

// read returns a small document whole, if it is there and its bytes have the digest.
func (st *store) read(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	plain := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	data, err := content.ReadBlob(ctx, st.content, plain)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", desc.Digest, err)
	}
	if desc.Digest.Algorithm().FromBytes(data) != desc.Digest {
		return nil, fmt.Errorf("%s is damaged on disk: %w", desc.Digest, errdefs.ErrDataLoss)
	}
	return data, nil
}

// put keeps a small document, replacing a damaged copy. The blob is synced before it is recorded.
func (st *store) put(ctx context.Context, d document) error {
	_, err := st.read(ctx, d.desc)
	if err != nil && !errdefs.IsNotFound(err) {
		for _, cs := range []content.Store{st.blobs, st.content} {
			if err := cs.Delete(ctx, d.desc.Digest); err != nil && !errdefs.IsNotFound(err) {
				return fmt.Errorf("dropping the damaged copy of %s: %w", d.desc.Digest, err)
			}
		}
	}
	// Even if it is there, writing puts it under the lease.
	plain := ocispec.Descriptor{MediaType: d.desc.MediaType, Digest: d.desc.Digest, Size: d.desc.Size}
	ref := "criserver-" + d.desc.Digest.String()
	if err := content.WriteBlob(ctx, st.content, ref, strings.NewReader(string(d.data)), plain, content.WithLabels(d.labels)); err != nil {
		return fmt.Errorf("keeping %s: %w", d.desc.Digest, err)
	}
	if err != nil {
		return nil
	}
	var paths []string
	for k := range d.labels {
		paths = append(paths, "labels."+k)
	}
	if len(paths) == 0 {
		return nil
	}
	if _, err := st.content.Update(ctx, content.Info{Digest: d.desc.Digest, Labels: d.labels}, paths...); err != nil {
		return fmt.Errorf("labelling %s: %w", d.desc.Digest, err)
	}
	return nil
}

// setName points a name at a target.
func (st *store) setName(ctx context.Context, name string, target ocispec.Descriptor) error {
	img := images.Image{Name: name, Target: target, Labels: map[string]string{labelOurs: "pulled"}}
	_, err := st.images.Create(ctx, img)
	if errdefs.IsAlreadyExists(err) {
		_, err = st.images.Update(ctx, img, "target", "labels."+labelOurs)
	}
	if err != nil {
		return fmt.Errorf("recording %s: %w", name, err)
	}
	return nil
}

// collect removes what nothing refers to, and frees its disk before it returns.
func (st *store) collect(ctx context.Context) error {
	if _, err := st.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("collecting garbage: %w", err)
	}
	return nil
}

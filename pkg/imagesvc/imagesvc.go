// Package imagesvc keeps images: it pulls them, unpacks their layers into
// overlay directories and lends these to containers. It is the only package
// that imports containerd's libraries; none of their types leave it.
//
// # How to think of it
//
// Everything here is a cache of what registries hold, in three parts below
// Options.Root:
//
//	meta.db      containerd's metadata (bolt, namespace k8s.io): names, leases, references
//	content/     manifests and configs by digest; no compressed layers
//	snapshots/   one directory per unpacked layer, shared by all images that begin with the same layers
//	tmp/         layers on their way; emptied by Open
//
// A pull resolves the name, reads the small documents (index, manifest, config),
// fetches the missing layers in parallel into nameless files, and unpacks them in
// order while they still arrive. A layer is committed only when its bytes had the
// digest and the length that the manifest promises, and its archive the diff ID that the
// config promises. When all layers are, and are on disk, the name is recorded. So
// what is listed can run, also after a power failure, and what a killed pull leaves behind is unreferenced
// and goes with the next Open.
//
// What is listed is also held in memory: Image and Images never touch the
// database, nor does Use after the first time.
//
// If the database cannot be read after a cold boot, the store is set aside
// (damaged-* below Root) and a new one begins.
//
// # Trust
//
// Registries and layers are hostile input. Documents are limited to 4 MiB,
// indexes to four levels, layers in what they may unpack to and in what they may
// leave of the disk (limits.go). Credentials go to the one host that they are for
// (credentials.go, transport.go). An error is text without secrets (errors.go).
//
// Errors wrap the kinds of github.com/containerd/errdefs.
package imagesvc

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// Options configure Open.
type Options struct {
	Root            string        // durable directory
	RegistryDir     string        // directory of hosts.toml files, read anew at each pull
	Parallel        int           // layers that one pull fetches at once; 0: 3
	ProgressTimeout time.Duration // a pull that brings nothing for this long fails; 0: never
	Pinned          []string      // name patterns (path.Match) of images that are reported as pinned
	Log             *logrus.Entry // nil: nothing is logged
}

// Image is one image; it never changes. Its slices and maps are shared: read them only.
type Image struct {
	ID          digest.Digest // of the config, of an artifact that of the manifest: the CRI image ID
	ChainID     digest.Digest // of all its layers (OCI image spec, "Layer ChainID"); empty if it has none
	Tags        []string      // repo:tag, fully qualified, sorted
	Digests     []string      // repo@digest, sorted
	Size        int64         // bytes on disk, unpacked
	Config      ocispec.Image
	Annotations map[string]string // of the manifest
	Pinned      bool
	Artifact    bool // files, without a configuration: no container can run it
}

// Auth is what a CRI request brings (AuthConfig, field by field). Its zero value is anonymous.
type Auth struct{ Username, Password, Auth, IdentityToken, RegistryToken, ServerAddress string }

// Usage is what something takes on disk.
type Usage struct {
	Path          string // a directory on the filesystem meant
	Device        uint64 // tells that filesystem from others, see stat(2)
	Bytes, Inodes uint64
	At            time.Time
}

// defaultParallel is how many layers a pull fetches at once unless told otherwise (the default of containerd and docker).
const defaultParallel = 3

// abandonedPullLimit bounds a pull that nobody waits for any more: the retry of a
// kubelet whose deadline ended comes within its back-off of five minutes.
const abandonedPullLimit = 10 * time.Minute

// Service is safe for concurrent use.
type Service struct {
	root     string
	log      *logrus.Entry
	opts     atomic.Pointer[Options]
	platform platforms.MatchComparer
	retry    retryPolicy

	store   *store
	catalog *catalog
	flights flights
	uses    uses
	locks   keyLock // layers under way by chain ID, uses by image ID
	usage   usageCache

	// recordMu serialises changes of the set of names. Readers never wait for it.
	recordMu sync.Mutex

	// background work: pulls outlive their callers, garbage is collected after Release.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Open opens the store, drops what interrupted pulls left, and collects garbage.
func Open(ctx context.Context, o Options) (*Service, error) {
	if !filepath.IsAbs(o.Root) {
		return nil, fmt.Errorf("image root %q is not an absolute path: %w", o.Root, errdefs.ErrInvalidArgument)
	}
	if o.Log == nil {
		quiet := logrus.New()
		quiet.SetOutput(io.Discard)
		o.Log = logrus.NewEntry(quiet)
	}
	s := &Service{
		root:     filepath.Clean(o.Root),
		log:      o.Log,
		platform: platforms.Only(platforms.DefaultSpec()),
		retry:    defaultRetry,
		catalog:  newCatalog(),
	}
	s.ctx, s.cancel = context.WithCancel(inNamespace(context.WithoutCancel(ctx)))
	s.Reload(o)
	if err := s.prepareRoot(); err != nil {
		s.cancel()
		return nil, err
	}
	st, err := openStore(ctx, s.root, s.log)
	if err != nil {
		s.cancel()
		return nil, err
	}
	s.store = st
	if err := s.recover(inNamespace(ctx)); err != nil {
		return nil, fmt.Errorf("recovering the image store %s: %w", s.root, joinClose(err, s.Close()))
	}
	return s, nil
}

// prepareRoot makes the root, closed to everybody else: layers hold setuid programs of
// any version. It empties what does not outlive the process.
func (s *Service) prepareRoot() error {
	if err := os.MkdirAll(s.root, 0o700); err != nil {
		return fmt.Errorf("image root: %w", err)
	}
	if err := os.Chmod(s.root, 0o700); err != nil {
		return fmt.Errorf("image root: %w", err)
	}
	if err := mount.UnmountRecursive(s.tmp(), unix.MNT_DETACH); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("unmounting what an unpack left in %s: %w", s.tmp(), err)
	}
	for _, dir := range []string{s.tmp(), filepath.Join(s.root, "content", "ingest")} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("emptying %s: %w", dir, err)
		}
	}
	if err := os.Mkdir(s.tmp(), 0o700); err != nil {
		return fmt.Errorf("image root: %w", err)
	}
	return nil
}

func (s *Service) tmp() string { return filepath.Join(s.root, "tmp") }

// recover drops what interrupted work left and reads the catalog into memory.
func (s *Service) recover(ctx context.Context) error {
	if err := s.store.dropUnfinished(ctx); err != nil {
		return err
	}
	if err := s.loadImages(ctx); err != nil {
		return err
	}
	if err := s.loadUses(ctx); err != nil {
		return err
	}
	return s.store.collect(ctx)
}

// Reload swaps what may change without a restart: RegistryDir, Parallel, ProgressTimeout, Pinned.
// Pulls under way keep what they began with.
func (s *Service) Reload(o Options) {
	if o.Parallel <= 0 {
		o.Parallel = defaultParallel
	}
	s.opts.Store(&o)
}

// Close cancels the pulls under way, waits for all work to end, and closes the store. Directories that Use returned stay.
// Closing again does nothing.
func (s *Service) Close() error {
	s.flights.mu.Lock()
	closed := s.ctx.Err() != nil
	s.cancel()
	s.flights.mu.Unlock()
	s.wg.Wait()
	if closed {
		return nil
	}
	return s.store.close()
}

// background runs fn in a goroutine that Close waits for, unless the service is closing.
func (s *Service) background(fn func()) {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	if s.ctx.Err() == nil {
		s.wg.Go(fn)
	}
}

package imagesvc

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/criserver/criserver/pkg/telemetry"
)

// flights are the pulls under way.
type flights struct {
	mu  sync.Mutex
	all map[flightKey]*flight
}

// flightKey: only who brings the same credential shares a pull, for it proves access to the image.
type flightKey struct {
	ref  string
	auth Auth
}

// flight is one pull and those who wait for it.
type flight struct {
	cancel    context.CancelFunc
	waiters   int
	abandoned *time.Timer // set while nobody waits

	done chan struct{} // then img and err are set
	img  Image
	err  error
}

// Pull brings an image for this platform. Concurrent pulls of one name with one credential share the work. It goes on when the
// caller's context ends, so that the retry finds it further or finished; if none comes within ten minutes it is cancelled.
//
// The registry is always asked, also for an image that is here: the answer proves that the credential may have it, and the tag may have moved.
//
// Errors: ErrRegistryUnavailable; errdefs' ErrInvalidArgument (reference, credential), ErrUnauthenticated, ErrPermissionDenied,
// ErrNotFound (no such image, or none for this platform), ErrFailedPrecondition (the image is not what it says or not acceptable),
// ErrNotImplemented (schema 1), ErrResourceExhausted (disk); and those of the context. Their text has no secrets.
func (s *Service) Pull(ctx context.Context, ref string, a Auth) (Image, error) {
	named, err := normalize(ref)
	if err != nil {
		return Image{}, err
	}
	cred, err := a.credential()
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", named, err)
	}
	if err := ctx.Err(); err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", named, err)
	}
	key := flightKey{named.String(), a}
	f, err := s.join(key, func(fctx context.Context) (Image, error) { return s.pull(telemetry.Carry(fctx, ctx), named, cred) })
	if err != nil {
		return Image{}, fmt.Errorf("pull %s: %w", named, err)
	}
	select {
	case <-f.done:
		return f.img, f.err
	case <-ctx.Done():
		s.leave(f)
		return Image{}, fmt.Errorf("pull %s: not finished in time, it goes on for the next request: %w", named, ctx.Err())
	}
}

// join returns the flight of the key, starting one if there is none.
func (s *Service) join(key flightKey, work func(context.Context) (Image, error)) (*flight, error) {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	if s.ctx.Err() != nil {
		return nil, fmt.Errorf("the image service is closing: %w", errdefs.ErrUnavailable)
	}
	if f := s.flights.all[key]; f != nil {
		f.waiters++
		if f.abandoned != nil {
			f.abandoned.Stop()
			f.abandoned = nil
		}
		return f, nil
	}
	ctx, cancel := context.WithCancel(s.ctx)
	f := &flight{cancel: cancel, waiters: 1, done: make(chan struct{})}
	if s.flights.all == nil {
		s.flights.all = map[flightKey]*flight{}
	}
	s.flights.all[key] = f
	s.wg.Go(func() {
		defer cancel()
		start := time.Now()
		img, err := work(ctx)
		if err != nil {
			err = publish(key.ref, key.auth, err)
		}
		countPull(err)
		s.land(key, f, img, err)
		entry := s.log.WithField("image", key.ref).WithField("took", time.Since(start).Round(time.Millisecond))
		if err != nil {
			entry.WithError(err).Info("image pull failed")
			return
		}
		entry.WithField("id", img.ID).Info("image pulled")
	})
	return f, nil
}

// land ends a flight: later pulls start anew.
func (s *Service) land(key flightKey, f *flight, img Image, err error) {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	delete(s.flights.all, key)
	if f.abandoned != nil {
		f.abandoned.Stop()
	}
	f.img, f.err = img, err
	close(f.done)
}

func (s *Service) leave(f *flight) {
	s.flights.mu.Lock()
	defer s.flights.mu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.abandoned = time.AfterFunc(abandonedPullLimit, f.cancel)
	}
}

// pull does the work of one flight. What it leaves when it fails is collected before it returns.
func (s *Service) pull(ctx context.Context, named reference.Named, cred credential) (img Image, err error) {
	defer rescue(&err)
	reg, err := s.newRegistry(ctx, named.String(), cred)
	if err != nil {
		return Image{}, err
	}
	defer reg.close()
	target, err := inStage(ctx, "resolve", reg.resolve)
	if err != nil {
		return Image{}, err
	}
	if img, ok := s.current(named, target); ok {
		return img, nil
	}
	ctx, end, err := s.store.lease(ctx)
	if err != nil {
		return Image{}, err
	}
	img, err = s.bring(ctx, reg, named, target)
	err = joinClose(err, end())
	if err != nil {
		err = joinClose(err, s.store.collect(context.WithoutCancel(ctx)))
		s.usage.forget()
	}
	return img, err
}

// current returns the image if the name points to that target already.
func (s *Service) current(named reference.Named, target ocispec.Descriptor) (Image, bool) {
	n, ok := s.catalog.target(named.String())
	if !ok || n.target != target.Digest {
		return Image{}, false
	}
	img, err := s.Image(n.id.String())
	return img, err == nil
}

// bring fetches what is missing and records the image.
func (s *Service) bring(ctx context.Context, reg *registry, named reference.Named, target ocispec.Descriptor) (Image, error) {
	p := &picker{platform: s.platform, read: func(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
		if data, err := s.store.read(ctx, desc); err == nil {
			return data, nil // else absent or damaged: fetched and replaced
		}
		return reg.document(ctx, desc)
	}}
	f, err := inStage(ctx, "manifest", func(ctx context.Context) (*found, error) { return p.pick(ctx, target, 0) })
	if err != nil {
		return Image{}, err
	}
	_, err = inStage(ctx, "layers", func(ctx context.Context) (struct{}, error) { return struct{}{}, s.fetchLayers(ctx, reg, f) })
	if err != nil {
		return Image{}, err
	}
	_, err = inStage(ctx, "sync", func(context.Context) (struct{}, error) { return struct{}{}, syncFilesystem(s.root) })
	if err != nil {
		return Image{}, err
	}
	refs := []string{reference.TrimNamed(named).String() + "@" + target.Digest.String()}
	if _, tagged := named.(reference.Tagged); tagged {
		refs = append(refs, named.String())
	}
	return s.record(ctx, f, target, refs)
}

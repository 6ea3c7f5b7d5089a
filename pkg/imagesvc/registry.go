package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"github.com/criserver/criserver/pkg/telemetry"
)

// registry is the way to the registry of one reference, with its mirrors, for the time of one pull.
type registry struct {
	name     string // the reference
	resolver remotes.Resolver
	fetcher  remotes.Fetcher
	retry    retryPolicy
	clients  []*http.Transport
}

// newRegistry reads hosts.toml (containerd's format; D-128) and sets up the hosts.
func (s *Service) newRegistry(ctx context.Context, name string, cred credential) (*registry, error) {
	o := s.opts.Load()
	r := &registry{name: name, retry: s.retry}
	var list []docker.RegistryHost // made once, so that resolver and fetcher share tokens
	hosts := func(domain string) (_ []docker.RegistryHost, err error) {
		if list != nil {
			return list, nil
		}
		list, err := config.ConfigureHosts(log.WithLogger(ctx, s.log), config.HostOptions{
			HostDir: hostDir(o.RegistryDir),
			UpdateClient: func(c *http.Client) error {
				if t, ok := c.Transport.(*http.Transport); ok {
					t.MaxResponseHeaderBytes = maxHeaders
					r.clients = append(r.clients, t)
				}
				return nil
			},
		})(domain)
		if err != nil {
			return nil, fmt.Errorf("configuration of registry %s in %s: %w", domain, o.RegistryDir, err)
		}
		for i := range list {
			protect(&list[i], domain, cred, o.ProgressTimeout)
		}
		return list, nil
	}
	r.resolver = docker.NewResolver(docker.ResolverOptions{Hosts: hosts, Headers: http.Header{"User-Agent": {"criserver"}}})
	var err error
	if r.fetcher, err = r.resolver.Fetcher(ctx, name); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func hostDir(dir string) func(string) (string, error) {
	if dir == "" {
		return nil
	}
	return config.HostDirFromRoot(dir)
}

// protect puts our guard and our authorizer around a host of the configuration.
func protect(h *docker.RegistryHost, domain string, cred credential, idle time.Duration) {
	origin := &url.URL{Scheme: h.Scheme, Host: h.Host}
	if !cred.allows(h.Host, domain) {
		cred = credential{}
	}
	way := h.Client.Transport
	h.Client = &http.Client{Transport: &guard{next: way, origin: origin, idle: idle}}
	tokens := &http.Client{Transport: &guard{next: way, origin: origin, idle: idle, token: true}, CheckRedirect: keepOrigin}
	h.Authorizer = &authorizer{
		origin: origin,
		cred:   cred,
		Authorizer: docker.NewDockerAuthorizer(
			docker.WithAuthClient(tokens),
			docker.WithAuthCreds(func(string) (string, string, error) { return cred.username, cred.secret, nil }),
		),
	}
}

// close ends idle connections.
func (r *registry) close() {
	for _, t := range r.clients {
		t.CloseIdleConnections()
	}
}

// quiet keeps the registry client from logging and from telling its requests to a collector of traces: what it would
// tell are addresses and answers in full. Its errors come back to us and are scrubbed then.
func quiet(ctx context.Context) context.Context {
	return log.WithLogger(telemetry.Carry(ctx, context.Background()), discard)
}

var discard = func() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.PanicLevel)
	return logrus.NewEntry(l)
}()

// resolve asks what the name stands for now.
func (r *registry) resolve(ctx context.Context) (ocispec.Descriptor, error) {
	for try := r.retry.begin(); ; {
		_, desc, err := r.resolver.Resolve(quiet(ctx), r.name)
		if err == nil {
			return desc, nil
		}
		if refusedConnection(err) || !try.again(ctx, err) {
			return desc, endOf(ctx, err)
		}
	}
}

// document fetches a small blob or manifest whole and checks it.
func (r *registry) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	buf := &limitedBuffer{left: maxDocument}
	if _, err := r.fetch(ctx, desc, buf); err != nil {
		return nil, err
	}
	return buf.data, nil
}

type limitedBuffer struct {
	data []byte
	left int
}

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if len(p) > b.left {
		return 0, fmt.Errorf("document exceeds %d bytes: %w", maxDocument, errRefused)
	}
	b.left -= len(p)
	b.data = append(b.data, p...)
	return len(p), nil
}

// fetch copies what desc describes into w, going on where a connection broke off (then resumed is true), and checks length and
// digest. The URLs of a descriptor (foreign layers) are never followed.
func (r *registry) fetch(ctx context.Context, desc ocispec.Descriptor, w io.Writer) (resumed bool, _ error) {
	ctx, ranged := watchRanges(ctx)
	plain := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	c := &copying{w: w, hash: desc.Digest.Algorithm().Hash(), size: desc.Size}
	for try := r.retry.begin(); ; {
		before := c.offset
		err := r.piece(ctx, plain, c)
		if err == nil {
			break
		}
		if c.offset > before {
			try = r.retry.begin() // it got on: the patience is for a standstill
		}
		if !try.again(ctx, err) {
			return ranged.Load(), fmt.Errorf("fetching %s: %w", desc.Digest, endOf(ctx, err))
		}
	}
	if got := digest.NewDigest(desc.Digest.Algorithm(), c.hash); got != desc.Digest {
		return ranged.Load(), fmt.Errorf("fetching %s: the bytes have digest %s: %w", desc.Digest, got, errRefused)
	}
	return ranged.Load(), nil
}

// piece fetches from where c stands to the end.
func (r *registry) piece(ctx context.Context, desc ocispec.Descriptor, c *copying) error {
	rc, err := r.fetcher.Fetch(quiet(ctx), desc)
	if err != nil {
		return err
	}
	defer rc.Close()
	if c.offset > 0 {
		if _, err := rc.(io.Seeker).Seek(c.offset, io.SeekStart); err != nil {
			return err
		}
	}
	if err := c.from(ctx, rc); err != nil {
		return err
	}
	if c.offset < c.size {
		return fmt.Errorf("the answer ended at byte %d of %d: %w", c.offset, c.size, io.ErrUnexpectedEOF)
	}
	return nil
}

// copying is a transfer under way.
type copying struct {
	w            io.Writer
	hash         hash.Hash
	offset, size int64
}

// from reads r to its end.
func (c *copying) from(ctx context.Context, r io.Reader) error {
	buf := make([]byte, 256<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := r.Read(buf)
		if n > 0 {
			c.hash.Write(buf[:n])
			c.offset += int64(n)
			if _, err := c.w.Write(buf[:n]); err != nil {
				return &localError{err}
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// localError is a fault on this side of a transfer; asking the registry again does not help.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

// retryPolicy says how patient a pull is with a registry that does not answer well. Each failure without any progress counts.
type retryPolicy struct {
	attempts   int           // without progress
	first      time.Duration // wait after the first failure; doubles
	longest    time.Duration // of one wait
	retryAfter time.Duration // the longest that a registry may ask for
}

var defaultRetry = retryPolicy{attempts: 7, first: 200 * time.Millisecond, longest: 10 * time.Second, retryAfter: time.Minute}

type attempt struct {
	policy retryPolicy
	failed int
	wait   time.Duration
}

func (p retryPolicy) begin() *attempt { return &attempt{policy: p, wait: p.first} }

// again waits and reports true if the failure is worth another try.
func (a *attempt) again(ctx context.Context, err error) bool {
	a.failed++
	if a.failed >= a.policy.attempts || !transient(err) {
		return false
	}
	wait := a.wait/2 + rand.N(a.wait/2+1) // jitter: the nodes of a cluster fail together
	a.wait = min(2*a.wait, a.policy.longest)
	var status *statusError
	if errors.As(err, &status) && status.retryAfter > 0 {
		wait = min(status.retryAfter, a.policy.retryAfter)
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// transient says whether the same request may succeed later. A stall is none: it took its whole time already.
func transient(err error) bool {
	var local *localError
	var stall *stallError
	if errors.As(err, &local) || errors.As(err, &stall) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var status *statusError
	var op *net.OpError
	var timeout net.Error
	return errors.As(err, &status) || errors.As(err, &op) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout()
}

// refusedConnection says that nothing listens there or that the name does not exist: no reason to wait at the beginning of a pull, for the
// kubelet comes back. In the middle of a transfer it is a registry that restarts.
func refusedConnection(err error) bool {
	var dns *net.DNSError
	return errors.Is(err, syscall.ECONNREFUSED) || errors.As(err, &dns) && dns.IsNotFound
}

// endOf prefers the end of the context to what the end caused.
func endOf(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, errdefs.ErrFailedPrecondition) {
		return fmt.Errorf("%w (%v)", cause, err)
	}
	return err
}

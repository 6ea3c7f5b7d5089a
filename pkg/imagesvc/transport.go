package imagesvc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"github.com/containerd/errdefs"
)

// guard stands between containerd's registry client and one host of a pull. To the client it is the way
// to that host; to the host it is all that may reach the client:
//
//   - Requests that a redirect takes elsewhere lose every header but the harmless ones.
//   - An answer that is no progress for the set time ends in a stallError.
//   - Answers that may be better later become a statusError, for the caller to wait and ask again.
//   - Manifests are cut at their limit.
type guard struct {
	next   http.RoundTripper
	origin *url.URL // only scheme and host
	idle   time.Duration
	token  bool // this is the way to token servers: no redirect leaves the host that was asked, answers are short
}

// harmless are the request headers that any host may see. Headers from hosts.toml may hold secrets, under any name.
var harmless = []string{"Accept", "Accept-Encoding", "Range", "User-Agent"}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	out := req.Clone(ctx)
	if !g.token {
		out.Header.Set("Accept-Encoding", "identity") // offsets and lengths are those of the bytes that have the digest
		if !sameOrigin(out.URL, g.origin) {
			if err := g.leave(out); err != nil {
				cancel(nil)
				return nil, err
			}
		}
	}
	if out.Header.Get("Range") != "" {
		noteRange(ctx)
	}
	w := &watch{idle: g.idle, stall: &stallError{host: out.URL.Host, after: g.idle}, ctx: ctx, cancel: cancel}
	w.start()
	resp, err := g.next.RoundTrip(out)
	w.stop()
	if err != nil {
		err = w.blame(err)
		cancel(nil)
		return nil, err
	}
	if retryable(resp.StatusCode) {
		err := newStatusError(resp)
		resp.Body.Close()
		cancel(nil)
		return nil, err
	}
	w.body, w.left = resp.Body, g.limit(out)
	resp.Body, resp.Request = w, req // the address as the client knows it, should the way below have changed https into http
	return resp, nil
}

// rangeKey is the context key of a flag that is set when a part of something is asked for, by us or by containerd's
// reader, which resumes an interrupted answer by itself.
type rangeKey struct{}

func watchRanges(ctx context.Context) (context.Context, *atomic.Bool) {
	seen := new(atomic.Bool)
	return context.WithValue(ctx, rangeKey{}, seen), seen
}

func noteRange(ctx context.Context) {
	if seen, ok := ctx.Value(rangeKey{}).(*atomic.Bool); ok {
		seen.Store(true)
	}
}

// leave readies a request that a redirect sends to another host.
func (g *guard) leave(req *http.Request) error {
	if err := checkTarget(req.URL, g.origin); err != nil {
		return fmt.Errorf("redirect from %s refused: %w", g.origin.Host, err)
	}
	kept := http.Header{}
	for _, name := range harmless {
		if v := req.Header.Values(name); len(v) > 0 {
			kept[name] = v
		}
	}
	req.Header = kept
	return nil
}

// limit returns how many bytes of an answer's body may be read; -1 is any number.
func (g *guard) limit(req *http.Request) int64 {
	switch {
	case g.token:
		return maxToken
	case path.Base(path.Dir(req.URL.Path)) == "manifests":
		return docker.MaxManifestSize + 1 // one more than the client accepts, so that it refuses
	}
	return -1
}

// sameOrigin compares host and scheme. On this machine the scheme does not matter: a local registry is asked as https first and
// as http then (below the guard).
func sameOrigin(a, b *url.URL) bool {
	return canonicalHost(a.Host) == canonicalHost(b.Host) && (strings.EqualFold(a.Scheme, b.Scheme) || docker.IsLocalhost(a.Host))
}

// checkTarget refuses addresses to which a registry has no business to send us: other schemes, the link-local network
// (cloud metadata services), and this machine unless the registry is there itself.
func checkTarget(u, from *url.URL) error {
	if u.Scheme != "https" && u.Scheme != "http" {
		return fmt.Errorf("scheme %q is neither http nor https: %w", u.Scheme, errdefs.ErrPermissionDenied)
	}
	ip := net.ParseIP(u.Hostname())
	switch {
	case ip.IsLinkLocalUnicast() || ip.IsLinkLocalMulticast() || ip.IsUnspecified():
		return fmt.Errorf("address %s is link-local: %w", u.Host, errdefs.ErrPermissionDenied)
	case docker.IsLocalhost(u.Host) && !docker.IsLocalhost(from.Host):
		return fmt.Errorf("address %s is this machine: %w", u.Host, errdefs.ErrPermissionDenied)
	}
	return nil
}

// retryable says whether the same request may succeed later.
func retryable(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

func newStatusError(resp *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(resp.Body, maxErrorText)) // what could be read is what can be shown
	e := &statusError{host: resp.Request.URL.Host, code: resp.StatusCode, message: strings.TrimSpace(string(text))}
	after := resp.Header.Get("Retry-After") // RFC 9110 section 10.2.3: seconds or a date
	if seconds, err := strconv.Atoi(after); err == nil && seconds > 0 {
		e.retryAfter = time.Duration(min(seconds, 3600)) * time.Second
	} else if when, err := http.ParseTime(after); err == nil {
		e.retryAfter = max(time.Until(when), 0)
	}
	return e
}

// watch is the body of an answer. While a Read (or, before, the wait for the headers) lasts longer than idle, it cancels the request.
// A slow reader is no stall: the clock runs only while the network is waited for.
type watch struct {
	body   io.ReadCloser
	left   int64 // bytes that may still be read; negative: any number
	idle   time.Duration
	stall  *stallError
	timer  *time.Timer
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (w *watch) start() {
	switch {
	case w.idle <= 0:
	case w.timer == nil:
		w.timer = time.AfterFunc(w.idle, func() { w.cancel(w.stall) })
	default:
		w.timer.Reset(w.idle)
	}
}

func (w *watch) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// blame replaces the error that our own cancelling caused by its cause.
func (w *watch) blame(err error) error {
	var stall *stallError
	if errors.As(context.Cause(w.ctx), &stall) {
		return stall
	}
	return err
}

func (w *watch) Read(p []byte) (int, error) {
	if w.left == 0 {
		return 0, io.EOF
	}
	if w.left > 0 && int64(len(p)) > w.left {
		p = p[:w.left]
	}
	w.start()
	n, err := w.body.Read(p)
	w.stop()
	if w.left > 0 {
		w.left -= int64(n)
	}
	if err != nil && err != io.EOF {
		err = w.blame(err)
	}
	return n, err
}

func (w *watch) Close() error {
	err := w.body.Close()
	w.stop()
	w.cancel(nil)
	return err
}

// authorizer gives one host of a pull what it may have: a ready bearer token, or what containerd's authorizer
// makes of the credential. Nothing for any other host that a redirect leads to.
type authorizer struct {
	docker.Authorizer
	origin *url.URL
	cred   credential // empty unless it is for this host
}

func (a *authorizer) Authorize(ctx context.Context, req *http.Request) error {
	switch {
	case !sameOrigin(req.URL, a.origin):
		return nil
	case a.cred.bearer != "":
		req.Header.Set("Authorization", "Bearer "+a.cred.bearer)
		return nil
	}
	return a.Authorizer.Authorize(ctx, req)
}

func (a *authorizer) AddResponses(ctx context.Context, responses []*http.Response) error {
	last := responses[len(responses)-1]
	switch {
	case !sameOrigin(last.Request.URL, a.origin):
		return fmt.Errorf("%s, to which %s redirects, wants credentials: %w", last.Request.URL.Host, a.origin.Host, docker.ErrInvalidAuthorization)
	case a.cred.bearer != "":
		return fmt.Errorf("%s refuses the registry token: %w", a.origin.Host, docker.ErrInvalidAuthorization)
	}
	for _, c := range auth.ParseAuthHeader(last.Header) {
		if c.Scheme == auth.BearerAuth {
			if err := a.checkRealm(c.Parameters["realm"]); err != nil {
				return err
			}
		}
	}
	return a.Authorizer.AddResponses(ctx, responses)
}

// checkRealm looks at where a registry wants its tokens to be fetched, to which the credential will go. Another host is
// usual (auth.docker.io); an unencrypted way is not, unless the registry itself was reached that way on purpose.
func (a *authorizer) checkRealm(realm string) error {
	u, err := url.Parse(realm)
	if err != nil {
		return fmt.Errorf("%s names a token server that is no URL: %w", a.origin.Host, errdefs.ErrPermissionDenied)
	}
	if err := checkTarget(u, a.origin); err != nil {
		return fmt.Errorf("token server of %s refused: %w", a.origin.Host, err)
	}
	if u.Scheme == "http" && a.cred.secret != "" && a.origin.Scheme != "http" && !docker.IsLocalhost(a.origin.Host) {
		return fmt.Errorf("token server of %s refused: %s is not encrypted: %w", a.origin.Host, u.Host, errdefs.ErrPermissionDenied)
	}
	return nil
}

// keepOrigin is the redirect policy of token requests: they carry the credential in their body.
func keepOrigin(req *http.Request, via []*http.Request) error {
	if len(via) >= 5 {
		return errors.New("stopped after 5 redirects")
	}
	if !sameOrigin(req.URL, via[0].URL) {
		return fmt.Errorf("token server %s redirects to %s: refused: %w", via[0].URL.Host, req.URL.Host, errdefs.ErrPermissionDenied)
	}
	return nil
}

package imagesvc

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
)

// ErrRegistryUnavailable is wrapped by the error of a pull that could not reach the
// registry or got nothing useful from it. The kubelet shows a reason of its own
// for it (cri-api pkg/errors, ErrRegistryUnavailable).
var ErrRegistryUnavailable = fmt.Errorf("registry %w", errdefs.ErrUnavailable)

// errPlatform: the image, or this part of an index, is not for this machine.
var errPlatform = fmt.Errorf("no image for this platform: %w", errdefs.ErrNotFound)

// errRefused is the kind of everything that is wrong with an image itself.
var errRefused = errdefs.ErrFailedPrecondition

// statusError is an answer of a registry that may be better when asked again.
type statusError struct {
	host       string
	code       int
	message    string        // of the registry, cut
	retryAfter time.Duration // 0: it said nothing
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%s answered %d %s", e.host, e.code, http.StatusText(e.code))
	if e.message != "" {
		text += ": " + e.message
	}
	return text
}

// stallError is a registry that sent nothing for too long.
type stallError struct {
	host  string
	after time.Duration
}

func (e *stallError) Error() string {
	return fmt.Sprintf("no progress: %s sent nothing for %s", e.host, e.after)
}

// publicError is what leaves the package after a pull: a text without secrets and a kind. The original is not kept, for
// its text has what was scrubbed.
type publicError struct {
	text string
	kind error
}

func (e *publicError) Error() string { return e.text }
func (e *publicError) Unwrap() error { return e.kind }

// publish makes the error of a pull fit to be seen.
func publish(name string, a Auth, err error) error {
	return &publicError{text: fmt.Sprintf("pull %s: %s", name, scrub(err.Error(), a)), kind: kindOf(err)}
}

// kinds are what errors of a pull may wrap, in the order of precedence.
var kinds = []error{
	context.DeadlineExceeded, context.Canceled, ErrRegistryUnavailable,
	errdefs.ErrUnauthenticated, errdefs.ErrPermissionDenied, errdefs.ErrResourceExhausted, errdefs.ErrInvalidArgument,
	errdefs.ErrNotImplemented, errdefs.ErrFailedPrecondition, errdefs.ErrDataLoss, errdefs.ErrNotFound, errdefs.ErrUnavailable,
}

// kindOf returns that of them, or ErrUnknown, that an error is; nil for nil.
func kindOf(err error) error {
	if err == nil {
		return nil
	}
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case isNetwork(err):
		return ErrRegistryUnavailable
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return errdefs.ErrUnauthenticated
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return errdefs.ErrResourceExhausted
	case errors.As(err, &status):
		switch status.StatusCode {
		case http.StatusUnauthorized:
			return errdefs.ErrUnauthenticated
		case http.StatusForbidden:
			return errdefs.ErrPermissionDenied
		case http.StatusNotFound:
			return errdefs.ErrNotFound
		default:
			return ErrRegistryUnavailable
		}
	}
	for _, kind := range kinds {
		if errors.Is(err, kind) {
			return kind
		}
	}
	return errdefs.ErrUnknown
}

// isNetwork says whether err came from the way to the registry rather than from what it said. What this package
// refuses on the way (a redirect, a realm) carries its own kind.
func isNetwork(err error) bool {
	var status *statusError
	var stall *stallError
	if errors.As(err, &status) || errors.As(err, &stall) {
		return true
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errdefs.ErrPermissionDenied) {
		return false
	}
	var op *net.OpError
	var dns *net.DNSError
	var u *url.Error
	return errors.As(err, &op) || errors.As(err, &dns) || errors.As(err, &u)
}

// maxErrorText is how much of an error is worth passing on, in bytes; a registry may answer with a web page.
const maxErrorText = 2048

var (
	urlPattern   = regexp.MustCompile(`(?i)https?://[^\s"'<>]+`)
	tokenPattern = regexp.MustCompile(`(?i)\b(bearer|basic)(\s+|%20|\+)[a-z0-9._~+/=%-]{6,}`)
	jwtPattern   = regexp.MustCompile(`\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]*)?`)
)

const redacted = "[redacted]"

// scrub takes out of a text what must not be seen: user information and queries of URLs (signed addresses of blobs), anything that looks like
// an Authorization header or a token, each secret of a in every usual spelling, and unprintable characters.
func scrub(text string, a Auth) string {
	for _, secret := range a.secrets() {
		text = strings.ReplaceAll(text, secret, redacted)
	}
	text = urlPattern.ReplaceAllStringFunc(text, func(match string) string {
		raw := strings.TrimRight(match, ".,:;)")
		u, err := url.Parse(raw)
		if err != nil {
			return redacted
		}
		u.User, u.RawQuery, u.Fragment = nil, "", ""
		return u.String() + match[len(raw):]
	})
	text = tokenPattern.ReplaceAllString(text, "$1 "+redacted)
	text = jwtPattern.ReplaceAllString(text, redacted)
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
	if len(text) > maxErrorText {
		text = strings.ToValidUTF8(text[:maxErrorText], "") + " ..."
	}
	return text
}

// secrets lists what of a must never be seen, in every spelling that may come back.
func (a Auth) secrets() []string {
	plain := []string{a.Password, a.Auth, a.IdentityToken, a.RegistryToken}
	if a.Username != "" && a.Password != "" {
		plain = append(plain, base64.StdEncoding.EncodeToString([]byte(a.Username+":"+a.Password)))
	}
	if user, password, err := a.decode(); err == nil && password != "" {
		plain = append(plain, password, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
	}
	var all []string
	for _, s := range plain {
		if s != "" {
			all = append(all, s)
			if q := url.QueryEscape(s); q != s {
				all = append(all, q)
			}
		}
	}
	return all
}

// joinClose adds the error of closing something to the error that made it necessary.
func joinClose(err, closing error) error {
	if closing == nil {
		return err
	}
	return errors.Join(err, closing)
}

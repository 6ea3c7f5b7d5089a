package spec

import (
	"fmt"
	"path"
	"strings"
	"unicode"

	"github.com/containerd/errdefs"
)

// Limits of a request. They lie far above what a kubelet sends; their purpose is that no request is without one.
const (
	maxName     = 253       // bytes of a name (Kubernetes: DNS subdomain)
	maxItems    = 1024      // mounts, devices, DNS entries and the like, each
	maxMetadata = 512 << 10 // bytes of all labels or annotations (Kubernetes: 256 KiB, to which the kubelet adds its own)
	maxIDMaps   = 340       // extents of a mapping (user_namespaces(7))
	maxPath     = 4096      // PATH_MAX
)

// invalid blames a field of the request.
func invalid(field, format string, a ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, a...), errdefs.ErrInvalidArgument)
}

// item names an element of a repeated field.
func item(field string, i int) string { return fmt.Sprintf("%s[%d]", field, i) }

// show quotes what a user wrote, and not more of it than fits a message.
func show(s string) string {
	if len(s) > 128 {
		return fmt.Sprintf("%q...", s[:128])
	}
	return fmt.Sprintf("%q", s)
}

// checkText refuses control characters and what is too long.
func checkText(field, s string, limit int) error {
	if len(s) > limit {
		return invalid(field, "%d bytes long; at most %d are allowed", len(s), limit)
	}
	if strings.ContainsFunc(s, unicode.IsControl) {
		return invalid(field, "%s has a control character", show(s))
	}
	return nil
}

// checkAbs wants an absolute path without "..". It may have a slash too many.
func checkAbs(field, p string) error {
	switch {
	case p == "":
		return invalid(field, "is missing")
	case !path.IsAbs(p):
		return invalid(field, "%s is not absolute", show(p))
	}
	return checkPath(field, p)
}

// checkPath wants a path without "..".
func checkPath(field, p string) error {
	if len(p) >= maxPath {
		return invalid(field, "%d bytes long; at most %d are allowed", len(p), maxPath-1)
	}
	if strings.ContainsRune(p, 0) {
		return invalid(field, "%s has a NUL", show(p))
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return invalid(field, `%s has a ".."`, show(p))
		}
	}
	return nil
}

// below says whether the clean path p is dir or lies below it.
func below(p, dir string) bool {
	return p == dir || dir == "/" || (strings.HasPrefix(p, dir) && p[len(dir)] == '/')
}

// checkCount limits a repeated field.
func checkCount(field string, n int) error {
	if n > maxItems {
		return invalid(field, "%d entries; at most %d are allowed", n, maxItems)
	}
	return nil
}

// checkMap limits labels and annotations.
func checkMap(field string, m map[string]string) error {
	size := 0
	for k, v := range m {
		if k == "" {
			return invalid(field, "has an empty key")
		}
		size += len(k) + len(v)
	}
	if size > maxMetadata {
		return invalid(field, "%d bytes in all; at most %d are allowed", size, maxMetadata)
	}
	return nil
}

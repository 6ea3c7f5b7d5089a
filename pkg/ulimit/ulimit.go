// Package ulimit reads resource limits as people write them: "nofile=1024:4096".
package ulimit

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// names of getrlimit(2), without "RLIMIT_".
var names = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
}

// Parse reads limits of the form NAME=SOFT:HARD, or NAME=VALUE for both; -1 is unlimited. Each name may be there once.
func Parse(limits []string) ([]specs.POSIXRlimit, error) {
	var list []specs.POSIXRlimit
	for _, u := range limits {
		name, values, _ := strings.Cut(u, "=")
		soft, hard, both := strings.Cut(values, ":")
		if !both {
			hard = soft
		}
		s, softErr := value(soft)
		h, hardErr := value(hard)
		if !slices.Contains(names, name) || softErr != nil || hardErr != nil {
			return nil, fmt.Errorf("%.100q is not NAME=SOFT:HARD, such as \"nofile=1024:4096\"; names are %s", u, strings.Join(names, ", "))
		}
		if s > h {
			return nil, fmt.Errorf("%q: the soft limit is above the hard one", u)
		}
		kind := "RLIMIT_" + strings.ToUpper(name)
		if slices.ContainsFunc(list, func(l specs.POSIXRlimit) bool { return l.Type == kind }) {
			return nil, fmt.Errorf("%q: there are two of %s", u, name)
		}
		list = append(list, specs.POSIXRlimit{Type: kind, Soft: s, Hard: h})
	}
	return list, nil
}

// value reads one limit; -1 is RLIM_INFINITY.
func value(s string) (uint64, error) {
	if s == "-1" {
		return ^uint64(0), nil
	}
	return strconv.ParseUint(s, 10, 63)
}

// Merge returns base with each limit of over in the place of that of the same type.
func Merge(base, over []specs.POSIXRlimit) []specs.POSIXRlimit {
	if len(over) == 0 {
		return base
	}
	merged := slices.Clone(base)
	for _, l := range over {
		if i := slices.IndexFunc(merged, func(b specs.POSIXRlimit) bool { return b.Type == l.Type }); i >= 0 {
			merged[i] = l
		} else {
			merged = append(merged, l)
		}
	}
	return merged
}

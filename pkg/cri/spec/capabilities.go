package spec

import (
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities are those that Docker and containerd give, and that images expect.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

const (
	fieldAddCaps     = "linux.security_context.capabilities.add_capabilities"
	fieldDropCaps    = "linux.security_context.capabilities.drop_capabilities"
	fieldAmbientCaps = "linux.security_context.capabilities.add_ambient_capabilities"
)

// capabilities fills in the sets of capabilities(7). The inheritable set is empty but for ambient ones: else a user of the
// container could raise it through a file with inheritable capabilities. Whoever is not root loses the effective set
// at execve, but for the ambient ones. What this host does not have itself is left out.
func (b *builder) capabilities(s *specs.Spec) error {
	set, err := b.capabilitySet()
	if err != nil {
		return err
	}
	ambient, all, err := parseCaps(fieldAmbientCaps, b.sc.GetCapabilities().GetAddAmbientCapabilities())
	if err != nil {
		return err
	}
	if all {
		ambient = b.Host.Capabilities
	}
	have := func(c string) bool { return slices.Contains(b.Host.Capabilities, c) }
	set = filter(append(set, ambient...), have)
	ambient = filter(ambient, have)
	s.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: set, Effective: set, Permitted: set, Inheritable: ambient, Ambient: ambient,
	}
	return nil
}

// capabilitySet applies "ALL" first, of both lists, and then the single names: adding ALL and dropping one gives all but
// that one, dropping ALL and adding one gives that one.
func (b *builder) capabilitySet() ([]string, error) {
	if b.sc.GetPrivileged() {
		return slices.Clone(b.Host.Capabilities), nil
	}
	add, addAll, err := parseCaps(fieldAddCaps, b.sc.GetCapabilities().GetAddCapabilities())
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := parseCaps(fieldDropCaps, b.sc.GetCapabilities().GetDropCapabilities())
	if err != nil {
		return nil, err
	}
	var set []string
	switch {
	case dropAll:
	case addAll:
		set = slices.Clone(b.Host.Capabilities)
	default:
		set = slices.Clone(defaultCapabilities)
	}
	return filter(append(set, add...), func(c string) bool { return !slices.Contains(drop, c) }), nil
}

// filter keeps what keep says, sorted and without repetitions. Nothing gives nil.
func filter(caps []string, keep func(string) bool) []string {
	var out []string
	for _, c := range caps {
		if keep(c) {
			out = append(out, c)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// parseCaps accepts names with or without "CAP_", in any case, and says whether "ALL" is among them.
func parseCaps(field string, names []string) (caps []string, all bool, err error) {
	for i, n := range names {
		name := strings.TrimPrefix(strings.ToUpper(n), "CAP_")
		if name == "ALL" {
			all = true
			continue
		}
		if !knownCapability(name) {
			return nil, false, invalid(item(field, i), "unknown capability %s", show(n))
		}
		caps = append(caps, "CAP_"+name)
	}
	return caps, all, nil
}

// knownCapability says whether Linux has a capability of the name (upper case, without "CAP_").
func knownCapability(name string) bool {
	for _, c := range capability.ListKnown() {
		if strings.EqualFold(c.String(), name) {
			return true
		}
	}
	return false
}

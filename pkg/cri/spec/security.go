package spec

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/apparmor"
)

const (
	fieldSeccomp  = "linux.security_context.seccomp"
	fieldAppArmor = "linux.security_context.apparmor"
	fieldSELinux  = "linux.security_context.selinux_options"

	// maxProfile limits a seccomp profile, in bytes. The longest of the field have some 20 kB.
	maxProfile = 1 << 20
)

// security fills in seccomp, AppArmor, SELinux and the paths to hide. Privileged containers have none of it.
func (b *builder) security(s *specs.Spec) (err error) {
	if s.Process.ApparmorProfile, err = b.appArmor(); err != nil {
		return err
	}
	if b.sc.GetPrivileged() {
		return nil
	}
	s.Linux.MaskedPaths = b.sc.GetMaskedPaths()
	s.Linux.ReadonlyPaths = b.sc.GetReadonlyPaths()
	s.Process.SelinuxLabel, s.Linux.MountLabel = b.selinux()
	s.Linux.Seccomp, err = b.seccomp(s)
	return err
}

// profile is a security profile as asked for; the zero value asks for nothing.
type profile struct {
	given bool
	kind  runtimeapi.SecurityProfile_ProfileType
	ref   string // Localhost: what it is called, without "localhost/"
}

// parseProfile reads the field or, if that is nil, the string that it replaced.
func parseProfile(field string, p *runtimeapi.SecurityProfile, old string) (profile, error) {
	if p == nil {
		name, local := strings.CutPrefix(old, "localhost/")
		switch {
		case old == "":
			return profile{}, nil
		case old == "unconfined":
			return profile{given: true, kind: runtimeapi.SecurityProfile_Unconfined}, nil
		case old == "runtime/default":
			return profile{given: true, kind: runtimeapi.SecurityProfile_RuntimeDefault}, nil
		case local:
			p = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: name}
		default:
			return profile{}, invalid(field, "unknown profile %s", show(old))
		}
	}
	if err := checkText(field+".localhost_ref", p.GetLocalhostRef(), maxPath-1); err != nil {
		return profile{}, err
	}
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_Localhost:
		if p.GetLocalhostRef() == "" {
			return profile{}, invalid(field+".localhost_ref", "is missing for Localhost")
		}
	case runtimeapi.SecurityProfile_RuntimeDefault, runtimeapi.SecurityProfile_Unconfined:
		if p.GetLocalhostRef() != "" {
			return profile{}, invalid(field+".localhost_ref", "is only for Localhost")
		}
	default:
		return profile{}, invalid(field+".profile_type", "unknown type %d", p.GetProfileType())
	}
	return profile{given: true, kind: p.GetProfileType(), ref: p.GetLocalhostRef()}, nil
}

// parseSeccomp is parseProfile for seccomp, where a Localhost profile is a file.
func parseSeccomp(p *runtimeapi.SecurityProfile, old string) (profile, error) {
	out, err := parseProfile(fieldSeccomp, p, old)
	if err == nil && out.ref != "" {
		err = checkAbs(fieldSeccomp+".localhost_ref", out.ref)
	}
	return out, err
}

// seccomp gives the filter; nil means unconfined, which is also what a request means that says nothing (CRI).
func (b *builder) seccomp(s *specs.Spec) (*specs.LinuxSeccomp, error) {
	p, err := parseSeccomp(b.sc.GetSeccomp(), b.sc.GetSeccompProfilePath())
	if err != nil {
		return nil, err
	}
	if !p.given || p.kind == runtimeapi.SecurityProfile_Unconfined {
		return nil, nil
	}
	if !b.Host.Seccomp {
		return nil, invalid(fieldSeccomp, "the kernel of this host has no seccomp; only Unconfined is possible")
	}
	if p.kind == runtimeapi.SecurityProfile_Localhost {
		return b.localSeccomp(s, p.ref)
	}
	if b.Defaults.SeccompProfile != nil {
		return b.Defaults.SeccompProfile, nil
	}
	filter, err := seccomp.GetDefaultProfile(s)
	if err != nil {
		return nil, invalid(fieldSeccomp, "the default profile: %v", err)
	}
	return filter, nil
}

// localSeccomp reads a profile of the node, in OCI's or in Docker's form. One that would confine nothing because it is
// empty is refused.
func (b *builder) localSeccomp(s *specs.Spec, file string) (*specs.LinuxSeccomp, error) {
	const field = fieldSeccomp + ".localhost_ref"
	text, err := b.Host.Lookup.ReadFile(file, maxProfile)
	if err != nil {
		return nil, invalid(field, "%s: %s", show(file), reason(err))
	}
	if !json.Valid(text) {
		return nil, invalid(field, "%s is no JSON", show(file))
	}
	filter, err := seccomp.LoadProfile(string(text), s)
	if err != nil {
		return nil, invalid(field, "%s: %v", show(file), err)
	}
	if filter == nil {
		return nil, invalid(field, "%s is empty: it has no defaultAction", show(file))
	}
	if problem := checkFilter(filter); problem != "" {
		return nil, invalid(field, "%s: %s", show(file), problem)
	}
	return filter, nil
}

// The words of OCI's config-linux, "Seccomp".
var (
	seccompActions = []specs.LinuxSeccompAction{
		specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno, specs.ActTrace,
		specs.ActAllow, specs.ActLog, specs.ActNotify,
	}
	seccompOperators = []specs.LinuxSeccompOperator{
		specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan,
		specs.OpMaskedEqual,
	}
)

// maxErrno is the largest error number that a system call can return; the kernel would cut a larger one.
const maxErrno = 4095

// checkFilter says what is wrong with a filter; "" if nothing is. System calls that this kernel does not know are not
// wrong: profiles are written for many kernels.
func checkFilter(f *specs.LinuxSeccomp) string {
	if !slices.Contains(seccompActions, f.DefaultAction) {
		return "unknown defaultAction " + show(string(f.DefaultAction))
	}
	if f.DefaultErrnoRet != nil && *f.DefaultErrnoRet > maxErrno {
		return "defaultErrnoRet is no error number"
	}
	for _, call := range f.Syscalls {
		switch {
		case len(call.Names) == 0:
			return "a rule has no names"
		case !slices.Contains(seccompActions, call.Action):
			return "unknown action " + show(string(call.Action))
		case call.ErrnoRet != nil && *call.ErrnoRet > maxErrno:
			return "errnoRet of " + show(call.Names[0]) + " is no error number"
		}
		for _, arg := range call.Args {
			if arg.Index > 5 || !slices.Contains(seccompOperators, arg.Op) {
				return "unknown argument or operator in a rule for " + show(call.Names[0])
			}
		}
	}
	return ""
}

// appArmor gives the name of the profile; "" means unconfined.
func (b *builder) appArmor() (string, error) {
	p, err := parseProfile(fieldAppArmor, b.sc.GetApparmor(), b.sc.GetApparmorProfile())
	if err != nil {
		return "", err
	}
	unconfined := p.given && p.kind == runtimeapi.SecurityProfile_Unconfined
	if !b.Host.AppArmor {
		if p.given && !unconfined {
			return "", invalid(fieldAppArmor, "this host has no AppArmor; only Unconfined is possible")
		}
		return "", nil
	}
	if unconfined || b.sc.GetPrivileged() {
		return "", nil
	}
	if p.kind == runtimeapi.SecurityProfile_Localhost {
		return b.localAppArmor(strings.TrimPrefix(p.ref, "localhost/"))
	}
	if p.given && b.Defaults.AppArmorProfile == "" {
		return "", invalid(fieldAppArmor, "this host has no default profile: the log of criserver says why")
	}
	return b.Defaults.AppArmorProfile, nil
}

// localAppArmor makes sure that the profile is loaded.
func (b *builder) localAppArmor(name string) (string, error) {
	const field = fieldAppArmor + ".localhost_ref"
	list, err := b.Host.Lookup.ReadFile(apparmor.Profiles, 16<<20)
	if err != nil {
		return "", invalid(field, "list the loaded profiles: %s", reason(err))
	}
	if !apparmor.Listed(list, name) {
		return "", invalid(field, "profile %s is not loaded", show(name))
	}
	return name, nil
}

// selinux makes the labels of the process and its files from the container's options, else the pod's. What these leave
// open is as container-selinux has it. Without options, or without SELinux, there are no labels.
func (b *builder) selinux() (process, mount string) {
	o := b.sc.GetSelinuxOptions()
	if o == nil {
		o = b.Pod.GetLinux().GetSecurityContext().GetSelinuxOptions()
	}
	if o == nil || !b.Host.SELinux {
		return "", ""
	}
	or := func(s, otherwise string) string {
		if s == "" {
			return otherwise
		}
		return s
	}
	user, level := or(o.GetUser(), "system_u"), or(o.GetLevel(), "s0")
	process = strings.Join([]string{user, or(o.GetRole(), "system_r"), or(o.GetType(), "container_t"), level}, ":")
	return process, strings.Join([]string{user, "object_r", "container_file_t", level}, ":")
}

// checkSELinux wants parts of a label.
func checkSELinux(o *runtimeapi.SELinuxOption) error {
	const word = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
	for _, p := range []struct{ field, value, allowed string }{
		{"user", o.GetUser(), word}, {"role", o.GetRole(), word}, {"type", o.GetType(), word}, {"level", o.GetLevel(), word + ":,"},
	} {
		if len(p.value) > maxName || strings.Trim(p.value, p.allowed) != "" {
			return invalid(fieldSELinux+"."+p.field, "%s is no part of a label", show(p.value))
		}
	}
	return nil
}

// confinement judges what can be known of the profiles and paths without looking at the host.
func (c *check) confinement() error {
	if c.sc.GetPrivileged() && !c.pod.GetLinux().GetSecurityContext().GetPrivileged() {
		return invalid("linux.security_context.privileged", "no privileged container allowed in sandbox that is not privileged itself")
	}
	if _, err := parseSeccomp(c.sc.GetSeccomp(), c.sc.GetSeccompProfilePath()); err != nil {
		return err
	}
	if _, err := parseProfile(fieldAppArmor, c.sc.GetApparmor(), c.sc.GetApparmorProfile()); err != nil {
		return err
	}
	if err := checkSELinux(c.sc.GetSelinuxOptions()); err != nil {
		return err
	}
	for _, list := range []struct {
		field string
		paths []string
	}{{"masked_paths", c.sc.GetMaskedPaths()}, {"readonly_paths", c.sc.GetReadonlyPaths()}} {
		field := "linux.security_context." + list.field
		if err := checkCount(field, len(list.paths)); err != nil {
			return err
		}
		for i, p := range list.paths {
			if err := checkAbs(item(field, i), p); err != nil {
				return err
			}
			if path.Clean(p) == "/" {
				return invalid(item(field, i), "cannot be the root")
			}
		}
	}
	return nil
}

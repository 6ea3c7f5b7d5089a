package shim

import (
	"encoding/base64"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"unique"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/shim/execinit"
)

// execPlan is what all execs in a container have in common. It is made for the
// first one: libcontainer's state, from which it comes, takes long to read.
type execPlan struct {
	unusual     string // why execs are libcontainer's; empty: they go by the init program
	namespaces  uint32
	oomScoreAdj string
	keyring     string
	label       string // of the container, for an exec that names none
	profile     string // likewise
	caps        *configs.Capabilities
	umask       *uint32
	groups      bool // may be set
	filter      unique.Handle[string]
	filterFlags uint32
}

// plan returns the container's plan, which it makes at the first exec.
func (s *Shim) plan(c *container) (*execPlan, error) {
	c.mu.Lock()
	p := c.execs
	c.mu.Unlock()
	if p != nil {
		return p, nil
	}
	lc, err := s.load(c)
	if err != nil {
		return nil, err
	}
	config := lc.Config()
	p = newExecPlan(c, &config)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.execs = p
	return p, nil
}

// unusualConfig decides which containers' execs are libcontainer's. The init
// program does what CRI's containers have; it does not do what they never have,
// whatever an NRI plugin may still ask for, so that it stays small enough to be checked.
func unusualConfig(config *configs.Config) string {
	switch {
	case config.Capabilities == nil:
		return "no capabilities named"
	case config.RootlessEUID || config.RootlessCgroups:
		return "rootless"
	case !config.Namespaces.Contains(configs.NEWNS):
		return "no mount namespace"
	case config.Personality != nil:
		return "personality"
	case config.MemoryPolicy != nil:
		return "memory policy"
	case config.Scheduler != nil || config.IOPriority != nil || config.ExecCPUAffinity != nil:
		return "scheduling"
	case config.IntelRdt != nil:
		return "Intel RDT"
	case config.ParentDeathSignal != 0:
		return "signal at the parent's death"
	case len(config.Rlimits) > 0: // specconv leaves them to the process
		return "rlimits of the container"
	case !joinsByPidfd():
		return "an old kernel"
	}
	return ""
}

// unusualProcess decides likewise on a single exec.
func unusualProcess(p *libcontainer.Process) string {
	switch {
	case p.Scheduler != nil || p.IOPriority != nil || p.CPUAffinity != nil:
		return "scheduling"
	case p.Args[0] == "." || p.Args[0] == "..": // exec.LookPath finds neither
		return "command"
	}
	return ""
}

// joinsByPidfd tells whether the kernel has what the init program uses. Of that
// CLOSE_RANGE_CLOEXEC came last, in 5.11; setns(2) takes a pidfd since 5.8.
var joinsByPidfd = sync.OnceValue(func() bool {
	return unix.CloseRange(math.MaxUint32, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil
})

func newExecPlan(c *container, config *configs.Config) *execPlan {
	p := &execPlan{
		unusual: unusualConfig(config), label: config.ProcessLabel, profile: config.AppArmorProfile,
		caps: config.Capabilities, umask: config.Umask, groups: groupsAllowed(c.Pid),
	}
	for _, ns := range config.Namespaces {
		p.namespaces |= uint32(ns.Syscall())
	}
	if config.OomScoreAdj != nil {
		p.oomScoreAdj = strconv.Itoa(*config.OomScoreAdj)
	}
	if !config.NoNewKeyring {
		p.keyring = "_ses." + c.id
	}
	filter, flags, ok := filterOf(config.Seccomp)
	if !ok && p.unusual == "" {
		p.unusual = "seccomp profile that is not compiled"
	}
	p.filter, p.filterFlags = unique.Make(filter), flags // most containers of a node have the same
	return p
}

// groupsAllowed is false in a user namespace that was set up without setgroups(2).
func groupsAllowed(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/setgroups")
	return err != nil || strings.TrimSpace(string(b)) != "deny"
}

// filterOf takes the program out of a profile that the daemon has compiled.
func filterOf(profile *configs.Seccomp) (program string, flags uint32, ok bool) {
	if profile == nil {
		return "", 0, true
	}
	if len(profile.Syscalls) != 1 || profile.ListenerPath != "" {
		return "", 0, false
	}
	encoded, ok := strings.CutPrefix(profile.Syscalls[0].Name, "bpf:")
	b, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil {
		return "", 0, false
	}
	for _, f := range profile.Flags {
		switch f {
		case "SECCOMP_FILTER_FLAG_TSYNC": // there is one thread
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		default:
			return "", 0, false
		}
	}
	return string(b), flags, true
}

// order is what the init program is to do for a process; nil: it is libcontainer's.
func (p *execPlan) order(c *container, group *execCgroup, process *libcontainer.Process) *execinit.Order {
	why := p.unusual
	if why == "" {
		why = unusualProcess(process)
	}
	env, ok := environment(process.Env)
	if why == "" && !ok {
		why = "environment"
	}
	if why != "" {
		c.log.WithField("why", why).Debug("exec by libcontainer")
		return nil
	}
	caps := process.Capabilities
	if caps == nil {
		caps = p.caps
	}
	o := &execinit.Order{
		Namespaces: p.namespaces, OOMScoreAdj: p.oomScoreAdj, Keyring: p.keyring,
		Label: first(process.Label, p.label), Profile: first(process.AppArmorProfile, p.profile),
		Terminal: process.ConsoleSocket != nil, Rows: process.ConsoleHeight, Cols: process.ConsoleWidth,
		UID: uint32(process.UID), GID: uint32(process.GID), Umask: p.umask,
		Caps: capabilitySets(caps), NoNewPrivs: *process.NoNewPrivileges,
		Filter: []byte(p.filter.Value()), FilterFlags: p.filterFlags,
		Cwd: process.Cwd, Args: process.Args, Env: env,
	}
	if o.Profile != "" {
		o.Profile = "exec " + o.Profile
	}
	if p.groups {
		o.Groups = []uint32{}
		for _, g := range process.AdditionalGroups {
			o.Groups = append(o.Groups, uint32(g))
		}
	}
	for _, r := range process.Rlimits {
		o.Rlimits = append(o.Rlimits, execinit.Rlimit{Kind: uint64(r.Type), Soft: r.Soft, Hard: r.Hard})
	}
	if !cgroups.IsCgroup2UnifiedMode() { // else the program is born where it belongs
		o.Cgroups = c.tasksFiles(group)
	}
	return o
}

// tasksFiles are the files of cgroup v1 by which a thread moves itself into the
// cgroups of an exec.
func (c *container) tasksFiles(group *execCgroup) (files []string) {
	for controller, path := range c.Cgroups {
		name := "tasks"
		if controller == "" { // of a hybrid node: cgroup v2, which moves whole processes
			name = "cgroup.procs"
		}
		files = append(files, filepath.Join(path, group.sub[controller], name))
	}
	return files
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// environment drops the variables that a later one overrides, and an empty HOME,
// for which one is looked up. What libcontainer refuses is not ok.
func environment(env []string) (out []string, ok bool) {
	last := make(map[string]int, len(env))
	for i, kv := range env {
		name, _, found := strings.Cut(kv, "=")
		if !found || name == "" || strings.IndexByte(kv, 0) >= 0 {
			return nil, false
		}
		last[name] = i
	}
	for i, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		if last[name] == i && (name != "HOME" || value != "") {
			out = append(out, kv)
		}
	}
	return out, true
}

// capabilityBits are the capabilities that the kernel has, by their names.
var capabilityBits = sync.OnceValue(func() map[string]uint64 {
	bits := make(map[string]uint64)
	list, err := capability.ListSupported()
	if err != nil {
		list = nil // then nothing is granted
	}
	for _, c := range list {
		bits["CAP_"+strings.ToUpper(c.String())] = 1 << uint(c)
	}
	return bits
})

// capabilitySets turns names into bits. As with libcontainer, one that the kernel
// does not have is left out.
func capabilitySets(c *configs.Capabilities) execinit.Capabilities {
	set := func(names []string) (bits uint64) {
		for _, name := range names {
			bits |= capabilityBits()[name]
		}
		return bits
	}
	return execinit.Capabilities{
		Bounding: set(c.Bounding), Effective: set(c.Effective), Permitted: set(c.Permitted),
		Inheritable: set(c.Inheritable), Ambient: set(c.Ambient),
	}
}

package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/pkg/ulimit"
)

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultTerm = "TERM=xterm"

	// maxString is the kernel's MAX_ARG_STRLEN: bytes of one argument or variable with its NUL.
	maxString = 128 << 10
	// maxStrings is what execve(2) takes of arguments and environment together, in bytes, with the usual stack limit of
	// 8 MiB: a quarter of it. Each string costs a pointer too.
	maxStrings = 2 << 20
)

// process fills in command, environment, working directory, user and limits.
func (b *builder) process(s *specs.Spec) error {
	args, err := b.args()
	if err != nil {
		return err
	}
	env, err := b.env()
	if err != nil {
		return err
	}
	if err := checkSize(args, env); err != nil {
		return err
	}
	cwd, err := b.cwd()
	if err != nil {
		return err
	}
	if _, err := StopSignal(b.Image, b.Container); err != nil {
		return err
	}
	ulimits, err := b.Handler.ulimits(b.Pod, b.Container.GetMetadata().GetName())
	if err != nil {
		return err
	}
	adj := max(int(b.Container.GetLinux().GetResources().GetOomScoreAdj()), b.Host.MinOOMScoreAdj)
	s.Process = &specs.Process{
		Terminal:        b.Container.GetTty(),
		User:            specs.User{UID: b.User.UID, GID: b.User.GID, AdditionalGids: b.User.Groups},
		Args:            args,
		Env:             env,
		Cwd:             cwd,
		Rlimits:         ulimit.Merge(b.Defaults.Ulimits, ulimits),
		NoNewPrivileges: b.sc.GetNoNewPrivs(),
		OOMScoreAdj:     &adj,
	}
	return nil
}

// args applies the rule of Kubernetes: a command replaces the image's ENTRYPOINT and drops its CMD, args replace CMD.
func (b *builder) args() ([]string, error) {
	entrypoint, cmd := b.Image.Config.Entrypoint, b.Image.Config.Cmd
	if len(b.Container.GetCommand()) > 0 {
		entrypoint, cmd = b.Container.GetCommand(), nil
	}
	if len(b.Container.GetArgs()) > 0 {
		cmd = b.Container.GetArgs()
	}
	args := slices.Concat(entrypoint, cmd)
	if len(args) == 0 {
		return nil, invalid("command", "none is given, and the image has neither ENTRYPOINT nor CMD")
	}
	if args[0] == "" {
		return nil, invalid("command", "its first word is empty")
	}
	for i, a := range args {
		if strings.ContainsRune(a, 0) {
			return nil, invalid("command", "word %d of the command line has a NUL", i)
		}
	}
	return args, nil
}

// env is, each overriding what is before it: defaults, the image's variables, those of the container. Values are kept
// as they are.
func (b *builder) env() ([]string, error) {
	e := environment{at: make(map[string]int, len(b.Image.Config.Env)+len(b.Container.GetEnvs())+4)}
	e.set(defaultPath)
	if b.Container.GetTty() {
		e.set(defaultTerm)
	}
	if b.Hostname != "" {
		e.set("HOSTNAME=" + b.Hostname)
	}
	if b.User.Home != "" {
		e.set("HOME=" + b.User.Home)
	}
	for i, kv := range b.Image.Config.Env {
		if strings.ContainsRune(kv, 0) {
			return nil, invalid("image config", "Env[%d] has a NUL", i)
		}
		e.set(kv)
	}
	for _, kv := range b.Container.GetEnvs() {
		e.set(kv.GetKey() + "=" + string(kv.GetValue()))
	}
	return e.list, nil
}

// environment keeps the order in which variables were first set.
type environment struct {
	list []string
	at   map[string]int
}

// set takes "KEY=value". An image may have entries of another form; they set nothing.
func (e *environment) set(kv string) {
	eq := strings.IndexByte(kv, '=')
	if eq <= 0 {
		return
	}
	if i, ok := e.at[kv[:eq]]; ok {
		e.list[i] = kv
		return
	}
	e.at[kv[:eq]] = len(e.list)
	e.list = append(e.list, kv)
}

// checkSize refuses what execve(2) would refuse with E2BIG only after the container was made.
func checkSize(args, env []string) error {
	total := 0
	for i, a := range args {
		if len(a) >= maxString {
			return invalid("args", "word %d of the command line has %d bytes; the kernel takes %d", i, len(a), maxString-1)
		}
		total += len(a) + 9
	}
	for _, v := range env {
		if len(v) >= maxString {
			key, _, _ := strings.Cut(v, "=")
			return invalid("envs", "%s and its value have %d bytes; the kernel takes %d", show(key), len(v), maxString-1)
		}
		total += len(v) + 9
	}
	if total > maxStrings {
		return invalid("envs", "command line and environment have %d bytes in all; the kernel takes %d", total, maxStrings)
	}
	return nil
}

// cwd is the working directory, clean. It is made in the root filesystem if it is missing (rootfs.MkdirAll).
func (b *builder) cwd() (string, error) {
	dir := b.Container.GetWorkingDir()
	if dir == "" {
		dir = b.Image.Config.WorkingDir
	}
	if dir == "" {
		return "/", nil
	}
	return checkCwd(dir)
}

func checkCwd(dir string) (string, error) {
	if err := checkText("working_dir", dir, maxPath-1); err != nil {
		return "", err
	}
	if !path.IsAbs(dir) {
		return "", invalid("working_dir", "%s is not absolute", show(dir))
	}
	clean := path.Clean(dir)
	if below(clean, "/proc") && clean != "/proc" {
		// /proc/self/fd/N of the runtime's init would lead out of the container.
		return "", invalid("working_dir", "%s lies below /proc", show(dir))
	}
	return clean, nil
}

// Process makes the process of an exec from the spec of its container: the same user, environment, directory,
// capabilities and confinement.
func Process(s *specs.Spec, cmd []string, tty bool) *specs.Process {
	p := *s.Process
	p.Args = cmd
	p.Terminal = tty
	p.ConsoleSize = nil
	if tty && !slices.ContainsFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, "TERM=") }) {
		p.Env = append(slices.Clone(p.Env), defaultTerm)
	}
	return &p
}

// checkCommand judges what a request itself says about the process.
func (c *check) command() error {
	for _, list := range []struct {
		field string
		words []string
	}{{"command", c.cfg.GetCommand()}, {"args", c.cfg.GetArgs()}} {
		for i, w := range list.words {
			if strings.ContainsRune(w, 0) {
				return invalid(item(list.field, i), "has a NUL")
			}
		}
	}
	if dir := c.cfg.GetWorkingDir(); dir != "" {
		if _, err := checkCwd(dir); err != nil {
			return err
		}
	}
	for i, kv := range c.cfg.GetEnvs() {
		field := fmt.Sprintf("envs[%d]", i)
		switch key := kv.GetKey(); {
		case key == "":
			return invalid(field+".key", "is empty")
		case strings.ContainsAny(key, "=\x00"):
			return invalid(field+".key", `%s has a "=" or a NUL`, show(key))
		case slices.Contains(kv.GetValue(), 0):
			return invalid(field+".value", "the value of %s has a NUL", show(key))
		case !utf8.Valid(kv.GetValue()):
			// The CRI has bytes here. config.json and the pipe to the container's init are JSON, which would change them.
			return invalid(field+".value", "the value of %s is not UTF-8; the OCI runtime can carry no other", show(key))
		case key == "HOME" && slices.Contains(kv.GetValue(), '\n'):
			// Whoever writes it to passwd(5) would begin another user.
			return invalid(field+".value", "the value of HOME has a newline")
		}
	}
	return nil
}

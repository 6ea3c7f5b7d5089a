package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/cni/builtin"
	"github.com/criserver/criserver/pkg/telemetry"
)

const (
	pluginTimeout = 60 * time.Second // of one plugin call, if the context does not end before
	pipeGrace     = 200 * time.Millisecond
	maxStdout     = 1 << 20 // bytes
	maxStderr     = 4 << 10 // bytes, of its end
)

// runner runs plugins for libcni: as functions of this process, or as programs.
type runner struct {
	version.PluginDecoder
	plugins *builtin.Plugins // nil: every plugin is a program
	binDirs []string
	log     *logrus.Entry
}

var _ invoke.Exec = (*runner)(nil)

// FindInPath returns the program of a plugin type, or the bare type if it is built in. Whether the built-in plugin
// understands the configuration is seen when it is called.
func (r *runner) FindInPath(plugin string, dirs []string) (string, error) {
	if !pluginName(plugin) {
		return "", fmt.Errorf("plugin type %q is not the name of a program", plugin)
	}
	if r.plugins != nil && builtin.Has(plugin) {
		return plugin, nil
	}
	return r.find(plugin, dirs)
}

func (r *runner) find(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("plugin %q is in none of %v; install it there", plugin, dirs)
	}
	return path, nil
}

// ExecPlugin calls a plugin: its parameters are in environ, its configuration is stdin. It returns what the plugin prints.
// Errors of plugins are *types.Error.
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) (_ []byte, err error) {
	ctx, done := telemetry.Stage(ctx, filepath.Base(path))
	defer func() { done(err) }()
	ctx, cancel := context.WithTimeout(ctx, pluginTimeout)
	defer cancel()
	req := request(environ, stdin)
	if name := path; r.plugins != nil && builtin.Has(name) && builtinVerb(req.Command) {
		reason := builtin.Supports(name, stdin)
		if reason == nil {
			return r.plugins.Run(ctx, name, req)
		}
		program, err := r.find(name, r.binDirs)
		if err != nil {
			return nil, fmt.Errorf("%w, and %w", reason, err)
		}
		path = program
	}
	return r.program(ctx, path, req, environ)
}

func builtinVerb(verb string) bool {
	return verb == "ADD" || verb == "DEL" || verb == "CHECK" || verb == "STATUS" || verb == "GC"
}

// delegate calls an IPAM plugin for a built-in plugin.
func (r *runner) delegate(ctx context.Context, plugin string, req builtin.Request) ([]byte, error) {
	path, err := r.FindInPath(plugin, r.binDirs)
	if err != nil {
		return nil, err
	}
	args := invoke.Args{
		Command: req.Command, ContainerID: req.ContainerID, NetNS: req.NetNS, IfName: req.IfName,
		PluginArgsStr: req.Args, Path: req.Path,
	}
	return r.program(ctx, path, req, args.AsEnv())
}

// request reads the parameters of a call from its environment.
func request(environ []string, stdin []byte) builtin.Request {
	req := builtin.Request{Config: stdin}
	fields := map[string]*string{
		"CNI_COMMAND": &req.Command, "CNI_CONTAINERID": &req.ContainerID, "CNI_NETNS": &req.NetNS,
		"CNI_IFNAME": &req.IfName, "CNI_ARGS": &req.Args, "CNI_PATH": &req.Path,
	}
	for _, kv := range environ {
		key, value, _ := strings.Cut(kv, "=")
		if f := fields[key]; f != nil {
			*f = value
		}
	}
	return req
}

// program runs a plugin's program and returns what it prints.
// A child that it leaves behind with its stdout open is not waited for.
func (r *runner) program(ctx context.Context, path string, req builtin.Request, environ []string) ([]byte, error) {
	stdout, stderr := &limited{limit: maxStdout}, &tail{limit: maxStderr}
	cmd, err := start(ctx, func() *exec.Cmd {
		cmd := command(ctx, path)
		cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(req.Config), stdout, stderr
		stdout.overflow = cmd.Cancel
		return cmd
	})
	if err == nil {
		err = cmd.Wait()
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended well and left a child behind
	}
	switch {
	case stdout.over:
		err = fmt.Errorf("it printed more than %d KiB and was killed", maxStdout>>10)
	case err == nil:
		return stdout.data, nil
	case ctx.Err() != nil:
		err = fmt.Errorf("it did not end in time and was killed (%w); see whether what it talks to is running", ctx.Err())
	}
	return nil, pluginError(path, req, err, stdout.data, stderr.data)
}

// command has a process group of its own, which is killed as a whole when the context ends.
func command(ctx context.Context, path string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = pipeGrace
	return cmd
}

// start starts a command, again and again while the program's file is still being written.
func start(ctx context.Context, command func() *exec.Cmd) (*exec.Cmd, error) {
	const retry = 100 * time.Millisecond
	for {
		cmd := command()
		err := cmd.Start()
		if !errors.Is(err, unix.ETXTBSY) {
			return cmd, err
		}
		select {
		case <-ctx.Done():
			return cmd, err
		case <-time.After(retry):
		}
	}
}

// pluginError says which plugin failed at what, in its own words: the error it printed (CNI SPEC section 5), its stderr.
func pluginError(path string, req builtin.Request, cause error, stdout, stderr []byte) error {
	var conf struct {
		Name string `json:"name"`
	}
	_ = json.Unmarshal(req.Config, &conf) // only to name the network
	e := &types.Error{Code: types.ErrInternal}
	if json.Unmarshal(stdout, e) != nil || e.Msg == "" {
		e.Msg = cause.Error()
	}
	msg := fmt.Sprintf("program %s: %s of network %q: %s", path, req.Command, conf.Name, e.Msg)
	if text := strings.TrimSpace(string(stderr)); text != "" {
		msg += fmt.Sprintf("; stderr: %q", text)
	}
	e.Msg = msg
	return e
}

// limited is a buffer that calls overflow instead of growing without end.
type limited struct {
	data     []byte
	limit    int
	overflow func() error
	over     bool
}

func (l *limited) Write(p []byte) (int, error) {
	if len(l.data)+len(p) > l.limit {
		l.over = true
		_ = l.overflow() // the process may be gone
		return 0, errors.New("too much output")
	}
	l.data = append(l.data, p...)
	return len(p), nil
}

// tail keeps the end of what is written.
type tail struct {
	data  []byte
	limit int
}

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p[max(0, len(p)-t.limit):]...)
	t.data = t.data[max(0, len(t.data)-t.limit):]
	return len(p), nil
}

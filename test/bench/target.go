package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

// target is a runtime that is measured.
type target struct {
	name, version string
	*node.Node    // the connection
	meter         *meter
	restart       func() error // starts the daemon again after it was killed; nil: nobody knows how
	logs          string       // directory of the pods' logs
	stop          func() error // ends a runtime that we started
}

// openTarget connects to a runtime and prepares to measure what it uses.
func openTarget(endpoint, group string) (_ *target, err error) {
	n, err := node.Connect(endpoint)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", endpoint, err)
	}
	v, err := n.Runtimes.Version(context.Background(), &runtimeapi.VersionRequest{})
	if err != nil {
		return nil, fmt.Errorf("Version of %s: %w", endpoint, err)
	}
	rc, err := n.Runtimes.RuntimeConfig(context.Background(), &runtimeapi.RuntimeConfigRequest{})
	if err == nil && rc.GetLinux().GetCgroupDriver() == runtimeapi.CgroupDriver_SYSTEMD {
		return nil, fmt.Errorf("%s uses the systemd cgroup driver: set it to cgroupfs, the bench names cgroups by their paths", endpoint)
	}
	t := &target{Node: n, name: v.RuntimeName, version: v.RuntimeVersion, meter: newMeter(groupName(group), n.Socket), stop: func() error { return nil }}
	if t.logs, err = os.MkdirTemp("", "criserver-bench-"); err != nil {
		return nil, err
	}
	return t, t.meter.adopt()
}

func groupName(of string) string { return fmt.Sprintf("/criserver-bench-%d-%s", os.Getpid(), of) }

// openOurs boots criserver, unless one was named.
func openOurs() (*target, error) {
	if *node.Endpoint != "" {
		return openTarget(*node.Endpoint, "ours")
	}
	endpoint, stop, err := boot(groupName("ours"))
	if err != nil {
		return nil, err
	}
	t, err := openTarget(endpoint, "ours")
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	t.stop, t.restart = stop, func() error { return nil } // the server sees to it
	return t, nil
}

// boot starts criserver on a node of its own, in the group named, and says where it listens and how it is ended.
func boot(group string) (endpoint string, stop func() error, err error) {
	args := []string{"-serve", group}
	for _, name := range []string{"bin", "cache", "registry"} {
		args = append(args, "-"+name, flag.Lookup(name).Value.String())
	}
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt from the terminal is ours, and the pods are removed first
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return "", nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func() error { return errors.Join(stdin.Close(), cmd.Wait()) }
	endpoint, err = bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("criserver was not started: %w", err), stop())
	}
	return strings.TrimSpace(endpoint), stop, nil
}

// server is the node on which criserver runs. It says on stdout where that listens, starts it again whenever it ends,
// as a service manager would, and retires it at the end of stdin.
type server struct{ group string }

// Run implements node.Runner.
func (s server) Run() int {
	if err := s.serve(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: the node:", err)
		return 1
	}
	return 0
}

func (s server) serve() error {
	var n *node.Node
	err := inGroup(s.group, func() (err error) {
		n, err = node.Start("ours", node.Options{Quiet: true})
		return err
	})
	if err != nil {
		return err
	}
	fmt.Println("unix://" + n.Socket)
	over := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		over <- err
	}()
	for {
		ended := make(chan error, 1)
		go func() { ended <- n.Wait() }()
		select {
		case err := <-over:
			return errors.Join(err, n.Retire())
		case <-ended:
			if err := inGroup(s.group, n.Boot); err != nil {
				return err
			}
		}
	}
}

// reconnect returns when the runtime answers again.
func (t *target) reconnect() (err error) {
	t.Disconnect()
	if t.Node, err = node.Connect("unix://" + t.Socket); err != nil {
		return err
	}
	return t.meter.adopt()
}

// shell is a command that is started and not waited for: what it starts is asked.
func shell(command string) func() error {
	return func() error {
		cmd := exec.Command("sh", "-c", command)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		go func() { _ = cmd.Wait() }()
		return nil
	}
}

// runCase measures one case and removes what an error left.
func (t *target) runCase(ctx context.Context, c benchCase, rep *report) error {
	if err := t.meter.adopt(); err != nil {
		return err
	}
	if err := t.pullIfMissing(ctx, toolImage); err != nil {
		return err
	}
	err := c.run(ctx, t, recorder{rep, t.name, c.name})
	return errors.Join(err, t.clear())
}

// close removes pods, cgroups and logs, and ends a runtime that we started.
func (t *target) close() error {
	err := errors.Join(t.clear(), t.stop())
	return errors.Join(err, t.meter.close(), os.RemoveAll(t.logs))
}

// clear removes every pod of ours.
func (t *target) clear() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	r, err := t.Runtimes.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: t.label()}})
	if err != nil {
		return fmt.Errorf("list what pods are left: %w", err)
	}
	return concurrently(8, len(r.Items), func(i int) error {
		return (&pod{id: r.Items[i].Id, t: t}).remove(ctx)
	})
}

// label marks our pods.
func (t *target) label() map[string]string {
	return map[string]string{"criserver-bench": strings.TrimPrefix(filepath.Base(t.meter.group), "criserver-bench-")}
}

func (t *target) pullIfMissing(ctx context.Context, ref string) error {
	s, err := t.Images.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err == nil && s.Image == nil {
		_, err = t.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	}
	if err != nil {
		return fmt.Errorf("pull %s: %w", ref, err)
	}
	return nil
}

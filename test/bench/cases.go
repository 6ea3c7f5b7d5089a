package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/node"
)

// manyPods is how many pods a full node's cases have.
const manyPods = 50

// life takes pods from nothing to running and back: one after the other, and many at once.
func life(ctx context.Context, t *target, rec recorder) error {
	for _, net := range []network{hostNetwork, ownNetwork} {
		for _, v := range []struct{ atOnce, times int }{{1, scaled(20)}, {scaled(manyPods), 1}} {
			if err := lives(ctx, t, rec.part("%s, %s", net, atOnce(v.atOnce)), net, v.atOnce, v.times); err != nil {
				return err
			}
		}
	}
	return nil
}

func atOnce(n int) string {
	if n == 1 {
		return "one by one"
	}
	return fmt.Sprintf("%d at once", n)
}

func lives(ctx context.Context, t *target, rec recorder, net network, atOnce, times int) error {
	before, err := t.meter.cpu()
	if err != nil {
		return err
	}
	for range times {
		pods, took := make([]*pod, atOnce), make([]steps, atOnce)
		begin := time.Now()
		err := concurrently(atOnce, atOnce, func(i int) (err error) {
			pods[i], took[i], err = t.start(ctx, net)
			return err
		})
		if err != nil {
			return err
		}
		up := time.Since(begin)
		err = concurrently(atOnce, atOnce, func(i int) error { return pods[i].end(ctx, took[i]) })
		if err != nil {
			return err
		}
		if atOnce > 1 {
			rec.add("until all have a log line", "ms", ms(up))
		}
		for _, s := range took {
			for _, step := range []string{stepRun, stepCreate, stepStart, stepUp, stepReady, stepStop, stepStopPod, stepRemove} {
				rec.add(step, "ms", s[step])
			}
		}
	}
	used, err := t.meter.cpu()
	rec.add("CPU of a pod's life", "ms", ms(used.since(before).all)/float64(atOnce*times))
	return err
}

// execs runs a command that does nothing: one after the other, and ten at once.
func execs(ctx context.Context, t *target, rec recorder) error {
	p, _, err := t.start(ctx, hostNetwork)
	if err != nil {
		return err
	}
	for _, v := range []struct{ atOnce, times int }{{1, scaled(100)}, {10, scaled(200)}} {
		rec := rec.part("%s", atOnce(v.atOnce))
		before, err := t.meter.cpu()
		if err != nil {
			return err
		}
		took := make([]float64, v.times)
		begin := time.Now()
		err = concurrently(v.atOnce, v.times, func(i int) error {
			begin := time.Now()
			defer func() { took[i] = ms(time.Since(begin)) }()
			return p.exec(ctx)
		})
		if err != nil {
			return err
		}
		rec.add("execs", "/s", float64(v.times)/time.Since(begin).Seconds())
		rec.add("ExecSync", "ms", took...)
		used, err := t.meter.cpu()
		if err != nil {
			return err
		}
		rec.add("CPU of an exec", "ms", ms(used.since(before).all)/float64(v.times))
	}
	return p.remove(ctx)
}

func (p *pod) exec(ctx context.Context) error {
	r, err := p.t.Runtimes.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.containers[0], Cmd: []string{"/benchtool", "true"}, Timeout: 60})
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d", r.ExitCode)
	}
	if err != nil {
		return fmt.Errorf("ExecSync: %w", err)
	}
	return nil
}

// lists makes the calls that a kubelet makes all the time, with many pods of two containers.
func lists(ctx context.Context, t *target, rec recorder) error {
	pods, err := t.startMany(ctx, scaled(manyPods))
	if err != nil {
		return err
	}
	if err := concurrently(10, len(pods), func(i int) error { return pods[i].add(ctx, steps{}, "c1", "pause") }); err != nil {
		return err
	}
	rec = rec.part("%d pods, %d containers", len(pods), 2*len(pods))
	for _, call := range listCalls(pods) {
		if err := timeCall(ctx, t, rec, call); err != nil {
			return fmt.Errorf("%s: %w", call.name, err)
		}
	}
	return concurrently(10, len(pods), func(i int) error { return pods[i].remove(ctx) })
}

// listCall returns how many there are of what it lists.
type listCall struct {
	name string
	want int
	call func(context.Context, runtimeapi.RuntimeServiceClient) (int, error)
}

func listCalls(pods []*pod) []listCall {
	n := len(pods)
	return []listCall{
		{"ListContainers", 2 * n, func(ctx context.Context, c runtimeapi.RuntimeServiceClient) (int, error) {
			r, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return len(r.GetContainers()), err
		}},
		{"ListPodSandbox", n, func(ctx context.Context, c runtimeapi.RuntimeServiceClient) (int, error) {
			r, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return len(r.GetItems()), err
		}},
		{"ListContainerStats", 2 * n, func(ctx context.Context, c runtimeapi.RuntimeServiceClient) (int, error) {
			r, err := c.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return len(r.GetStats()), err
		}},
		{"ListPodSandboxStats", n, func(ctx context.Context, c runtimeapi.RuntimeServiceClient) (int, error) {
			r, err := c.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return len(r.GetStats()), err
		}},
		{"ListPodSandboxMetrics", n, func(ctx context.Context, c runtimeapi.RuntimeServiceClient) (int, error) {
			r, err := c.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
			return len(r.GetPodMetrics()), err
		}},
		{"PodSandboxStatus", 1, func(ctx context.Context, c runtimeapi.RuntimeServiceClient) (int, error) {
			_, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pods[0].id})
			return 1, err
		}},
	}
}

func timeCall(ctx context.Context, t *target, rec recorder, c listCall) error {
	before, err := t.meter.cpu()
	if err != nil {
		return err
	}
	times := scaled(50)
	for range times {
		begin := time.Now()
		got, err := c.call(ctx, t.Runtimes)
		took := time.Since(begin)
		switch {
		case status.Code(err) == codes.Unimplemented:
			return nil // this runtime has no figure
		case err != nil:
			return err
		case got < c.want:
			return fmt.Errorf("%d are listed, there must be at least %d", got, c.want)
		}
		rec.add(c.name, "ms", ms(took))
	}
	used, err := t.meter.cpu()
	rec.add("CPU of "+c.name, "ms", ms(used.since(before).runtime)/float64(times))
	return err
}

// logs has a container write as fast as it can, and counts afterwards what arrived.
func logs(ctx context.Context, t *target, rec recorder) error {
	const line = 128
	for _, v := range []struct {
		name          string
		bytes, writes int
	}{{"writes of 64 KiB", scaled(512 << 20), 64 << 10}, {"writes of a line", scaled(64 << 20), line}} {
		payload := v.bytes / line * line
		if err := flood(ctx, t, rec.part("%s", v.name), payload, line, v.writes); err != nil {
			return err
		}
	}
	return nil
}

func flood(ctx context.Context, t *target, rec recorder, payload, line, writes int) error {
	p, err := t.runPod(ctx, hostNetwork)
	if err != nil {
		return err
	}
	before, err := t.meter.cpu()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := p.add(ctx, steps{}, "flood", "flood", strconv.Itoa(payload), strconv.Itoa(line), strconv.Itoa(writes)); err != nil {
		return err
	}
	err = await(ctx, "the end of the container", func() (bool, error) {
		r, err := t.Runtimes.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.containers[0]})
		return r.GetStatus().GetState() == runtimeapi.ContainerState_CONTAINER_EXITED, err
	})
	if err != nil {
		return err
	}
	took := time.Since(begin)
	used, err := t.meter.cpu()
	if err != nil {
		return err
	}
	var lines int
	err = await(ctx, "all lines in the log", func() (bool, error) { // some runtimes report an exit before the last ones are written
		lines, err = countLines(p.log("flood"))
		return lines >= payload/line, err
	})
	rec.add("payload", "MB/s", float64(payload)/1e6/took.Seconds())
	rec.add("runtime's CPU per GB", "s", used.since(before).runtime.Seconds()/(float64(payload)/1e9))
	return errors.Join(err, p.remove(ctx), os.RemoveAll(p.config.LogDirectory))
}

func countLines(file string) (n int, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		k, err := f.Read(buf)
		n += bytes.Count(buf[:k], []byte{'\n'})
		if err != nil {
			if err == io.EOF {
				err = nil
			}
			return n, err
		}
	}
}

// idle looks at what pods cost that nobody asks for anything.
func idle(ctx context.Context, t *target, rec recorder) error {
	none, err := t.meter.settled()
	if err != nil {
		return err
	}
	pods, err := t.startMany(ctx, scaled(manyPods))
	if err != nil {
		return err
	}
	many, err := t.meter.settled()
	if err != nil {
		return err
	}
	before, err := t.meter.cpu()
	if err != nil {
		return err
	}
	begin := time.Now()
	select {
	case <-time.After(time.Duration(float64(20*time.Second) * min(1, *scale))): // what is measured is a span of time
	case <-ctx.Done():
		return ctx.Err()
	}
	used, err := t.meter.cpu()
	if err != nil {
		return err
	}
	n := float64(len(pods))
	rec.add("daemon, no pods", "MiB", float64(none.daemon.PSS)/1024)
	rec.add("helpers, no pods", "MiB", float64(none.others.PSS)/1024)
	rec = rec.part("%d pods", len(pods))
	rec.add("daemon", "MiB", float64(many.daemon.PSS)/1024)
	rec.add("helpers", "MiB", float64(many.others.PSS)/1024)
	rec.add("memory of a pod beside its container", "KiB", float64(many.pss()-none.pss())/n)
	rec.add("processes of a pod beside its container", "", float64(many.processes-none.processes)/n)
	rec.add("CPU", "%", 100*used.since(before).runtime.Seconds()/time.Since(begin).Seconds())
	return concurrently(10, len(pods), func(i int) error { return pods[i].remove(ctx) })
}

// restart kills the daemon below many pods.
func restart(ctx context.Context, t *target, rec recorder) error {
	if t.restart == nil {
		return nil
	}
	pods, err := t.startMany(ctx, scaled(manyPods))
	if err != nil {
		return err
	}
	daemon, err := t.meter.listener()
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := kill(daemon); err != nil {
		return fmt.Errorf("kill the daemon: %w", err)
	}
	if err := t.restart(); err != nil {
		return fmt.Errorf("start the daemon again: %w", err)
	}
	if err := t.reconnect(); err != nil {
		return err
	}
	rec = rec.part("%d pods", len(pods))
	rec.add("SIGKILL until it answers", "ms", ms(time.Since(begin)))
	err = await(ctx, "all pods to be ready again", func() (bool, error) {
		r, err := t.Runtimes.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: t.label(),
			State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}})
		return len(r.GetItems()) == len(pods), err
	})
	if err != nil {
		return err
	}
	rec.add("SIGKILL until all pods are listed ready", "ms", ms(time.Since(begin)))
	if err := pods[0].exec(ctx); err != nil {
		return fmt.Errorf("after the restart: %w", err)
	}
	return concurrently(10, len(pods), func(i int) error { return pods[i].remove(ctx) })
}

// kill returns when the process and all of its threads are gone, and its sockets with them.
func kill(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		return err
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10_000)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("process %d is still there 10 s after SIGKILL", pid)
		default:
			return nil
		}
	}
}

// pull fetches an image of several layers from a registry on the loopback, after it was removed.
func pull(ctx context.Context, t *target, rec recorder) error {
	const ref = "docker.io/testimages/large:gzip"
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	remove := func() error {
		_, err := t.Images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		return err
	}
	if err := remove(); err != nil {
		return err
	}
	store, err := t.imageStore(ctx)
	if err != nil {
		return err
	}
	unix.Sync()
	daemon, err := t.meter.listener()
	if err != nil {
		return err
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", daemon), []byte("5"), 0); err != nil { // its peak begins anew; proc_pid_clear_refs(5)
		return err
	}
	before, err := t.meter.cpu()
	diskBefore := diskUsage(store)
	if err != nil {
		return err
	}
	begin := time.Now()
	if _, err := t.Images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
		return err
	}
	took := time.Since(begin)
	used, err := t.meter.cpu()
	peak, err2 := node.Field(fmt.Sprintf("/proc/%d/status", daemon), "VmHWM:")
	rec = rec.part("large:gzip")
	rec.add("time", "s", took.Seconds())
	rec.add("CPU", "s", used.since(before).runtime.Seconds())
	rec.add("daemon's peak RSS", "MiB", float64(peak)/1024)
	rec.add("disk", "MB", float64(diskUsage(store)-diskBefore)/1e6)
	return errors.Join(err, err2, remove())
}

// imageStore is the directory around the one that the runtime names as that of images: its neighbours, such as
// compressed layers, take room as well.
func (t *target) imageStore(ctx context.Context) (string, error) {
	r, err := t.Images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return "", err
	}
	for _, fs := range r.ImageFilesystems {
		return filepath.Dir(fs.GetFsId().GetMountpoint()), nil
	}
	return "", errors.New("ImageFsInfo names no directory")
}

// diskUsage is the bytes of all blocks below a directory. Files that vanish meanwhile take no room.
func diskUsage(dir string) (bytes int64) {
	seen := map[uint64]bool{}
	_ = filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if err == nil && unix.Lstat(p, &st) == nil && !seen[st.Ino] {
			seen[st.Ino] = true // a hard link takes no room
			bytes += st.Blocks * 512
		}
		return nil
	})
	return bytes
}

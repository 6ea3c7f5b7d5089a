package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// toolImage has what our containers run; see test/images.
const toolImage = "docker.io/testimages/benchtool:v2"

var serial atomic.Int64 // tells pods apart

// pod is a pod of ours with its containers.
type pod struct {
	t          *target
	id         string
	config     *runtimeapi.PodSandboxConfig
	containers []string
}

// network is a pod's network as cases are named after it.
type network string

const (
	ownNetwork  network = "own network"
	hostNetwork network = "host network"
)

// podConfig is what a kubelet sends for a small pod of the class Burstable.
func (t *target) podConfig(net network) (*runtimeapi.PodSandboxConfig, error) {
	id := fmt.Sprintf("bench-%d", serial.Add(1))
	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	hostname := id
	if net == hostNetwork {
		namespaces.Network, hostname = runtimeapi.NamespaceMode_NODE, "" // such a pod has the node's name
	}
	labels := map[string]string{"io.kubernetes.pod.name": id, "io.kubernetes.pod.namespace": "bench", "io.kubernetes.pod.uid": id}
	for k, v := range t.label() {
		labels[k] = v
	}
	logs := filepath.Join(t.logs, id)
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: id, Uid: id, Namespace: "bench"},
		Hostname:     hostname,
		LogDirectory: logs,
		Labels:       labels,
		Annotations:  map[string]string{"kubernetes.io/config.source": "api"},
		DnsConfig: &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}, Options: []string{"ndots:5"},
			Searches: []string{"bench.svc.cluster.local", "svc.cluster.local", "cluster.local"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: t.meter.podParent() + "/" + id,
			Resources:    &runtimeapi.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 128 << 20},
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces,
				Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}},
		},
	}, os.MkdirAll(logs, 0o755)
}

// containerConfig is what a kubelet sends for a container of that pod.
func (p *pod) containerConfig(name string, args ...string) (*runtimeapi.ContainerConfig, error) {
	hosts := filepath.Join(p.config.LogDirectory, "etc-hosts")
	err := errors.Join(os.MkdirAll(filepath.Dir(p.log(name)), 0o755), os.WriteFile(hosts, []byte("127.0.0.1 localhost\n"), 0o644))
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: toolImage, UserSpecifiedImage: toolImage},
		Args:     args,
		LogPath:  name + "/0.log",
		Labels:   map[string]string{"io.kubernetes.container.name": name, "io.kubernetes.pod.uid": p.config.Metadata.Uid},
		Envs:     []*runtimeapi.KeyValue{{Key: "KUBERNETES_SERVICE_HOST", Value: []byte("10.96.0.1")}, {Key: "KUBERNETES_SERVICE_PORT", Value: []byte("443")}},
		Mounts:   []*runtimeapi.Mount{{ContainerPath: "/etc/hosts", HostPath: hosts}},
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 128 << 20, OomScoreAdj: 900},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
				Seccomp:          p.config.Linux.SecurityContext.Seccomp,
				MaskedPaths: []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
					"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware"},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}},
		},
	}, err
}

// log is the log file of a container.
func (p *pod) log(container string) string {
	return filepath.Join(p.config.LogDirectory, container, "0.log")
}

// steps are how long the parts of a pod's life took, by name, in ms.
type steps map[string]float64

// timed runs one step.
func (s steps) timed(name string, f func() error) error {
	begin := time.Now()
	err := f()
	s[name] = ms(time.Since(begin))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// The steps of a pod's life. Up is the first three together; ready is until the container's first line is in its log.
const (
	stepRun      = "RunPodSandbox"
	stepCreate   = "CreateContainer"
	stepStart    = "StartContainer"
	stepUp       = "pod up"
	stepReady    = "until the first log line"
	stepStop     = "StopContainer"
	stepStopPod  = "StopPodSandbox"
	stepRemove   = "RemovePodSandbox"
	firstOfEvery = "c0" // the name of a pod's first container
)

// runPod makes a pod with no container.
func (t *target) runPod(ctx context.Context, net network) (*pod, error) {
	config, err := t.podConfig(net)
	if err != nil {
		return nil, err
	}
	r, err := t.Runtimes.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		return nil, err
	}
	return &pod{t: t, id: r.PodSandboxId, config: config}, nil
}

// start makes a pod with one container that waits to be told to end.
func (t *target) start(ctx context.Context, net network) (p *pod, s steps, err error) {
	s = steps{}
	begin := time.Now()
	err = s.timed(stepRun, func() error { p, err = t.runPod(ctx, net); return err })
	if err == nil {
		err = p.add(ctx, s, firstOfEvery, "pause")
	}
	if err != nil {
		return p, s, err
	}
	s[stepUp] = ms(time.Since(begin))
	err = await(ctx, "the container's first log line", func() (bool, error) {
		fi, err := os.Stat(p.log(firstOfEvery))
		return err == nil && fi.Size() > 0, nil
	})
	s[stepReady] = ms(time.Since(begin))
	return p, s, err
}

// add creates a container and starts it.
func (p *pod) add(ctx context.Context, s steps, name string, args ...string) error {
	config, err := p.containerConfig(name, args...)
	if err != nil {
		return err
	}
	var id string
	err = s.timed(stepCreate, func() error {
		r, err := p.t.Runtimes.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: config, SandboxConfig: p.config})
		id = r.GetContainerId()
		return err
	})
	if err != nil {
		return err
	}
	p.containers = append(p.containers, id)
	return s.timed(stepStart, func() error {
		_, err := p.t.Runtimes.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		return err
	})
}

// end takes a pod through the steps of its end.
func (p *pod) end(ctx context.Context, s steps) error {
	err := s.timed(stepStop, func() error {
		_, err := p.t.Runtimes.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.containers[0], Timeout: 30})
		return err
	})
	if err != nil {
		return err
	}
	err = s.timed(stepStopPod, func() error {
		_, err := p.t.Runtimes.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		return err
	})
	if err != nil {
		return err
	}
	err = s.timed(stepRemove, func() error {
		_, err := p.t.Runtimes.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id})
		return err
	})
	return errors.Join(err, os.RemoveAll(p.config.LogDirectory))
}

// remove ends a pod and its containers at once.
func (p *pod) remove(ctx context.Context) error {
	if _, err := p.t.Runtimes.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("StopPodSandbox: %w", err)
	}
	if _, err := p.t.Runtimes.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return fmt.Errorf("RemovePodSandbox: %w", err)
	}
	return nil
}

// startMany makes n pods with a network of their own, ten at once.
func (t *target) startMany(ctx context.Context, n int) ([]*pod, error) {
	pods := make([]*pod, n)
	err := concurrently(10, n, func(i int) (err error) {
		pods[i], _, err = t.start(ctx, ownNetwork)
		return err
	})
	return pods, err
}

// concurrently calls f for 0 to n-1, so many at once, and returns the first error.
func concurrently(atOnce, n int, f func(i int) error) error {
	var next atomic.Int64
	var once sync.Once
	var first error
	var workers sync.WaitGroup
	for range min(atOnce, n) {
		workers.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := f(i); err != nil {
					once.Do(func() { first = err })
					return
				}
			}
		})
	}
	workers.Wait()
	return first
}

// await asks every millisecond until the answer is yes, for two minutes.
func await(ctx context.Context, what string, holds func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		yes, err := holds()
		if yes || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

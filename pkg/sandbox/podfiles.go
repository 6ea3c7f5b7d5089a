package sandbox

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
)

// shmSize of a pod's /dev/shm in bytes, the field's common value.
const shmSize = 64 << 20

func (m *Manager) hostname(cfg *runtimeapi.PodSandboxConfig) string {
	if cfg.GetHostname() != "" {
		return cfg.GetHostname()
	}
	name, err := os.Hostname()
	if err != nil {
		return "localhost"
	}
	return name
}

// files are the pod's files that are bound into its containers.
func (m *Manager) files(id string, cfg *runtimeapi.PodSandboxConfig) spec.Files {
	dir := m.podDir(id)
	f := spec.Files{
		Hosts:      filepath.Join(dir, "hosts"),
		Hostname:   filepath.Join(dir, "hostname"),
		ResolvConf: filepath.Join(dir, "resolv.conf"),
		Shm:        filepath.Join(dir, "shm"),
	}
	if spec.HostIPC(cfg) {
		f.Shm = "/dev/shm"
	}
	return f
}

// createFiles writes what does not depend on the network, and mounts the shared memory.
func (m *Manager) createFiles(p *pod) error {
	cfg := p.snapshot().Config
	f := m.files(p.id, cfg)
	resolv, err := resolvConf(cfg.GetDnsConfig())
	if err != nil {
		return err
	}
	if err := writePodFile(cfg, f.ResolvConf, resolv); err != nil {
		return err
	}
	if err := writePodFile(cfg, f.Hostname, []byte(m.hostname(cfg)+"\n")); err != nil {
		return err
	}
	if spec.HostIPC(cfg) {
		return nil
	}
	if err := os.Mkdir(f.Shm, 0o700); err != nil {
		return err
	}
	uid, gid := rootOwner(cfg)
	opts := fmt.Sprintf("mode=1777,size=%d,uid=%d,gid=%d", shmSize, uid, gid)
	if err := unix.Mount("shm", f.Shm, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		return fmt.Errorf("mount shared memory: %w", err)
	}
	return nil
}

// writePodFile writes a file that belongs to root in the pod.
func writePodFile(cfg *runtimeapi.PodSandboxConfig, file string, content []byte) error {
	if err := os.WriteFile(file, content, 0o644); err != nil {
		return err
	}
	uid, gid := rootOwner(cfg)
	return os.Chown(file, uid, gid)
}

// writeHosts writes /etc/hosts of a pod with these addresses; with the host's network it is the host's.
func (m *Manager) writeHosts(p *pod, ips []netip.Addr) error {
	cfg := p.snapshot().Config
	file := m.files(p.id, cfg).Hosts
	if spec.HostNetwork(cfg) {
		b, err := os.ReadFile("/etc/hosts")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return writePodFile(cfg, file, b)
	}
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	for _, ip := range ips {
		fmt.Fprintf(&b, "%s\t%s\n", ip, m.hostname(cfg))
	}
	return writePodFile(cfg, file, []byte(b.String()))
}

// resolvConf is the content of /etc/resolv.conf: the host's without a configuration, else what the configuration says (CRI: DNSConfig).
func resolvConf(dns *runtimeapi.DNSConfig) ([]byte, error) {
	if dns == nil {
		b, err := os.ReadFile("/etc/resolv.conf")
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	var b strings.Builder
	for _, s := range dns.GetServers() {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(dns.GetSearches()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.GetSearches(), " "))
	}
	if len(dns.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.GetOptions(), " "))
	}
	return []byte(b.String()), nil
}

// removeFiles unmounts and removes all that the pod has in its directory.
func (m *Manager) removeFiles(id string) error {
	dir := m.podDir(id)
	if err := errors.Join(m.unpin(id), unmount(filepath.Join(dir, "shm"))); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// Package cni attaches pods to networks: it keeps the configuration found in the CNI directory and runs its plugins.
//
// Think of it as four parts around libcni, which knows the protocol:
//
//   - a configuration (config.go, watch.go): the first *.conflist, *.conf or *.json by name, read anew when the directory
//     changes. A file that cannot be used is reported by Status, and the configuration before it stays in force: pods of
//     the node must not move to another network because of a typing error. Without any file the built-in network serves
//     (default.go), unless Options.Builtin is off; a file replaces it at once.
//   - a runner of plugins (exec.go): loopback, bridge, host-local and portmap are functions of this process (package
//     builtin) unless their configuration has a key that only the real plugin knows; everything else is executed, with a
//     deadline, in a process group of its own, with a limit on what it may print.
//   - a book of attachments (book.go): a record is written before ADD and removed after DEL, with all that DEL needs. DEL
//     thus runs with the configuration of ADD, whatever the directory holds now, and a crash in the middle leaves a trace.
//     The book also knows who holds which host port and address.
//   - the calls: Setup, Teardown (attach.go), Check (check.go) and GC (gc.go).
//
// What is on disk: Cache/results is libcni's (the results of ADD), Cache/attachments are our records, Cache/networks are
// the addresses of the built-in network; the addresses of other host-local networks are where their configuration says.
// Only attachments with a record are ever collected, so another runtime on the node may use the same directories.
package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/semaphore"

	"github.com/criserver/criserver/pkg/cni/builtin"
)

// Options configure Open.
type Options struct {
	ConfDir string   // watched; made if it does not exist
	BinDirs []string // of plugins that are not built in
	Cache   string   // durable directory of libcni's results (default /var/lib/cni)
	Builtin bool     // run loopback, bridge, host-local and portmap in process, and serve the built-in network when ConfDir has no configuration
	Prefer  string   // "ipv4" or "ipv6": family of the primary address of a pod that has both; empty: as the network says
	Log     *logrus.Entry
}

// Pod is what the plugins are told about a pod.
type Pod struct {
	ID, Name, Namespace, UID            string
	NetNS                               string // path of its network namespace
	Ports                               []PortMapping
	Ingress, Egress                     int64 // bandwidth limits in bits per second; 0: none
	DNSServers, DNSSearches, DNSOptions []string
	Annotations                         map[string]string
	CgroupPath                          string
}

// PortMapping asks for a host port.
type PortMapping struct {
	Protocol      string // tcp, udp or sctp; empty: tcp
	ContainerPort int32
	HostPort      int32 // 0: the port is not mapped (CRI PortMapping.host_port)
	HostIP        string
}

// Result is what the pod got.
type Result struct {
	IPs []netip.Addr    // of eth0, primary first
	Raw json.RawMessage // the CNI result, for people and tools
}

// Network is safe for concurrent use.
type Network struct {
	confDir string
	log     *logrus.Entry
	plugins *builtin.Plugins
	exec    *runner
	libcni  *libcni.CNIConfig // with the results in Options.Cache
	bare    *libcni.CNIConfig // with no results, for the verbs of the network itself
	book    *book
	cache   string
	builtin bool
	prefer  string

	busy *semaphore.Weighted // attachments hold 1, the verb GC holds all: a plugin must not collect what is being made

	mu      sync.Mutex
	conf    *config // in force; nil: none
	problem error   // why ConfDir cannot be used
	unready error   // what the plugins answered to STATUS

	changed chan struct{} // tells the poller that there is another configuration
	stop    context.CancelFunc
	running sync.WaitGroup // the watcher and the poller
}

// defaultCache is where CNI keeps results by convention (libcni.CacheDir).
const defaultCache = "/var/lib/cni"

// attachments that can be made at the same time; more wait.
const maxBusy = 1 << 20

// Open reads the configuration and watches its directory. A configuration that cannot be used is no error: see Status.
func Open(o Options) (*Network, error) {
	if o.Cache == "" {
		o.Cache = defaultCache
	}
	for _, dir := range []string{o.ConfDir, o.Cache} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("cni: %w", err)
		}
	}
	n := &Network{
		confDir: o.ConfDir, log: o.Log, cache: o.Cache, builtin: o.Builtin, prefer: o.Prefer,
		exec:    &runner{binDirs: o.BinDirs, log: o.Log},
		busy:    semaphore.NewWeighted(maxBusy),
		changed: make(chan struct{}, 1),
	}
	if n.log == nil {
		n.log = logrus.NewEntry(logrus.StandardLogger())
		n.exec.log = n.log
	}
	var err error
	if n.book, err = openBook(filepath.Join(o.Cache, "attachments"), n.log); err != nil {
		return nil, err
	}
	if o.Builtin {
		if n.plugins, err = builtin.New(n.exec.delegate, n.log); err != nil {
			return nil, fmt.Errorf("cni: %w", err)
		}
		n.exec.plugins = n.plugins
	}
	n.libcni = libcni.NewCNIConfigWithCacheDir(o.BinDirs, o.Cache, n.exec)
	n.bare = libcni.NewCNIConfigWithCacheDir(o.BinDirs, filepath.Join(o.Cache, "attachments", "none"), n.exec)
	w, err := newWatcher(n)
	if err != nil {
		n.closePlugins()
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.reload()
	n.running.Go(func() { w.run(ctx) })
	n.running.Go(func() { n.poll(ctx) })
	return n, nil
}

// Status is nil when pods can be attached. It reads memory only.
func (n *Network) Status() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.problem != nil:
		return n.problem
	case n.conf == nil:
		return fmt.Errorf("cni: no network configuration in %s; add one (*.conflist) or switch the built-in network on: %w", n.confDir, errdefs.ErrUnavailable)
	}
	return n.unready
}

// Config returns the configuration in force, for people and tools. It is nil if there is none.
func (n *Network) Config() json.RawMessage {
	if conf := n.current(); conf != nil {
		return json.RawMessage(conf.list.Bytes)
	}
	return nil
}

func (n *Network) current() *config {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.conf
}

// Close ends what Open started and waits for it. No call may be under way.
func (n *Network) Close() error {
	n.stop()
	n.running.Wait()
	return n.closePlugins()
}

func (n *Network) closePlugins() error {
	if n.plugins == nil {
		return nil
	}
	return n.plugins.Close()
}

// LeftError says that something of the attachment may be left and Teardown must be called again.
type LeftError struct{ Err error }

func (e *LeftError) Error() string { return e.Err.Error() }
func (e *LeftError) Unwrap() error { return e.Err }

package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/images/oci"
)

// Node is a runtime that listens on a socket, ours or, with -endpoint, another one.
type Node struct {
	Dir      string // all of its files
	Socket   string
	Images   runtimeapi.ImageServiceClient
	Runtimes runtimeapi.RuntimeServiceClient

	options Options
	conn    *grpc.ClientConn
	cmd     *exec.Cmd
	args    []string
	done    chan error // the daemon's end
}

// Options are how a node differs from the usual one, which has a configuration file and a network of its own.
type Options struct {
	Bare          bool   // no configuration file at all, as on a fresh machine, and so the built-in network
	PrivateMounts bool   // the daemon's mounts are not shared with anybody, as on a machine without systemd
	Config        string // tables for the end of its configuration file
	Quiet         bool   // the daemon logs at its usual level, as it does where its speed matters
}

// conflist is the network of a node: a bridge with both families and host ports.
const conflist = `{ "cniVersion": "1.0.0", "name": %[1]q, "plugins": [
  { "type": "bridge", "bridge": "%[1]s0", "isGateway": true, "ipMasq": true, "ipMasqBackend": "nftables", "hairpinMode": true,
    "ipam": { "type": "host-local", "dataDir": %[2]q, "ranges": [[{"subnet": "10.%[3]d.0.0/16"}], [{"subnet": "fd00:%[3]d::/64"}]],
              "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}] } },
  { "type": "portmap", "capabilities": {"portMappings": true}, "snat": true, "backend": "nftables" } ] }
`

var subnets atomic.Int32 // each node of a test binary has its own

// Start starts criserver with all its files below Scratch()/name, or connects to the runtime of -endpoint.
func Start(name string, o Options) (*Node, error) {
	if *Endpoint != "" {
		return Connect(*Endpoint)
	}
	n := &Node{Dir: filepath.Join(Scratch(), name), options: o}
	n.Socket = filepath.Join(n.Dir, "cri.sock")
	for _, name := range []string{"criserver", "criserver-shim"} {
		if err := copyBinary(filepath.Join(*binDir, name), filepath.Join(n.Dir, "bin", name), nil); err != nil {
			return nil, err
		}
	}
	n.args = []string{"--root", n.Root(), "--state", n.State(), "--listen", n.Socket}
	if !o.Bare {
		n.args = []string{"--config", n.Config()}
		if err := n.configure(name); err != nil {
			return nil, err
		}
	}
	return n, n.Boot()
}

// Connect returns when the runtime at an endpoint (unix:///path) answers; within 30 s, or it fails.
func Connect(endpoint string) (*Node, error) {
	n := &Node{Socket: strings.TrimPrefix(endpoint, "unix://")}
	return n, n.connect()
}

func (n *Node) configure(name string) error {
	level := "debug"
	if n.options.Quiet {
		level = "info"
	}
	hosts, networks := filepath.Join(n.Dir, "certs.d/_default"), filepath.Join(n.Dir, "net.d")
	for file, text := range map[string]string{
		n.Config(): fmt.Sprintf("listen = %q\nroot = %q\nstate = %q\nlog_level = %q\n[image]\nregistry_dir = %q\n[cni]\nconf_dir = %q\n"+
			"[nri]\nsocket = %q\nplugin_dir = %q\n[cdi]\nspec_dirs = [%q]\n"+
			"[handler.special]\nulimits = [\"nofile=500:600\", \"core=0\"]\nannotations = [\"ulimits\", \"writable-cgroups\"]\n[handler.plain]\n%s",
			n.Socket, n.Root(), n.State(), level, filepath.Dir(hosts), networks, n.Plugins(), filepath.Join(n.Dir, "nri.d"), n.Devices(), n.options.Config),
		filepath.Join(hosts, "hosts.toml"):       fmt.Sprintf("[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", *registry),
		filepath.Join(networks, "test.conflist"): fmt.Sprintf(conflist, name, filepath.Join(n.Dir, "ipam"), 232+subnets.Add(1)),
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// Retire ends the daemon and then the shim, which must have nothing left to look after, and removes the bridge, which CNI
// leaves for the next pod: the next node of the same name has another network.
func (n *Node) Retire() error {
	shim := n.ShimPid()
	if err := n.Stop(); err != nil {
		return err
	}
	if err := unix.Kill(shim, unix.SIGTERM); err != nil {
		return fmt.Errorf("end shim %d: %w", shim, err)
	}
	for range 500 {
		if unix.Kill(shim, 0) != nil {
			return n.removeBridge()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("shim %d does not end although it has nothing to look after", shim)
}

func (n *Node) removeBridge() error {
	name := filepath.Base(n.Dir) + "0" // conflist
	if n.options.Bare {
		name = "cri0" // the built-in network
	}
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil // there was no pod
	}
	if err != nil {
		return fmt.Errorf("bridge %s: %w", name, err)
	}
	return netlink.LinkDel(link)
}

// NewShim puts another build of the shim in place of the one that is installed: one that does the same.
func (n *Node) NewShim() error {
	shim := filepath.Join(n.Dir, "bin/criserver-shim")
	return copyBinary(shim, shim, []byte("another build"))
}

// copyBinary replaces to by a copy of from with something behind its end, which the kernel does not look at.
func copyBinary(from, to string, behind []byte) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(to+".new", append(b, behind...), 0o755); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

// Config is the daemon's configuration file.
func (n *Node) Config() string { return filepath.Join(n.Dir, "config.toml") }

// Root is the daemon's durable directory.
func (n *Node) Root() string { return filepath.Join(n.Dir, "root") }

// State is the daemon's volatile directory.
func (n *Node) State() string { return filepath.Join(n.Dir, "run") }

// Plugins is the socket on which NRI plugins connect.
func (n *Node) Plugins() string { return filepath.Join(n.Dir, "nri.sock") }

// Devices is the directory of descriptions of CDI devices.
func (n *Node) Devices() string { return filepath.Join(n.Dir, "cdi.d") }

// Log is the daemon's log file.
func (n *Node) Log() string { return filepath.Join(n.Dir, "log") }

// Boot starts the daemon and returns when it serves.
func (n *Node) Boot() error {
	log, err := os.OpenFile(n.Log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	n.cmd = exec.Command(filepath.Join(n.Dir, "bin/criserver"), n.args...)
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if n.options.PrivateMounts {
		n.cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS // Go makes all mounts of it private
	}
	if err := n.cmd.Start(); err != nil {
		return err
	}
	n.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(n.cmd, n.done)
	if err := n.connect(); err != nil {
		return fmt.Errorf("%w; the end of its log:\n%s", err, n.LogTail(20))
	}
	return nil
}

// connect returns when the runtime answers.
func (n *Node) connect() error {
	n.Disconnect()
	const pause = 2 * time.Millisecond // between attempts while nobody listens; gRPC's own would grow from a second
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: pause, Multiplier: 1, MaxDelay: pause}, MinConnectTimeout: time.Second}),
		grpc.WithUnaryInterceptor(withDeadline(time.Minute)))
	if err != nil {
		return err
	}
	n.conn, n.Images, n.Runtimes = conn, runtimeapi.NewImageServiceClient(conn), runtimeapi.NewRuntimeServiceClient(conn)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		for {
			_, err := n.Runtimes.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
			if status.Code(err) != codes.Unavailable { // as some runtimes answer until they are ready
				answer <- err
				return
			}
			time.Sleep(pause)
		}
	}()
	select {
	case end := <-n.done:
		n.done <- end
		return fmt.Errorf("the daemon ended: %v", end)
	case err := <-answer:
		if err != nil {
			return fmt.Errorf("the daemon does not answer: %w", err)
		}
		return nil
	}
}

// withDeadline gives a call that has none a deadline, so that a runtime that hangs fails one test and not all.
func withDeadline(limit time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if _, has := ctx.Deadline(); !has {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		return invoke(ctx, method, req, reply, cc, opts...)
	}
}

// Disconnect hangs up; calls in flight fail.
func (n *Node) Disconnect() {
	if n.conn != nil {
		n.conn.Close()
	}
}

// Pid is the daemon's process.
func (n *Node) Pid() int { return n.cmd.Process.Pid }

// ShimPid reads which process is the shim; 0 when there is none.
func (n *Node) ShimPid() int {
	b, err := os.ReadFile(filepath.Join(n.State(), "shim.pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return pid
}

// Kill ends the daemon as a crash would.
func (n *Node) Kill() error { return n.end(unix.SIGKILL) }

// Stop ends the daemon as an administrator would. Pods run on.
func (n *Node) Stop() error { return n.end(unix.SIGTERM) }

func (n *Node) end(sig syscall.Signal) error {
	if err := n.cmd.Process.Signal(sig); err != nil {
		return err
	}
	select {
	case err := <-n.done:
		n.done <- err
		var exit *exec.ExitError
		if errors.As(err, &exit) && sig == unix.SIGKILL {
			return nil
		}
		return err
	case <-time.After(20 * time.Second):
		return fmt.Errorf("the daemon did not end within 20 s of %v", sig)
	}
}

// Wait returns when the daemon has ended, with its end.
func (n *Node) Wait() error {
	err := <-n.done
	n.done <- err
	return err
}

// Signal sends the daemon a signal.
func (n *Node) Signal(sig syscall.Signal) error { return n.cmd.Process.Signal(sig) }

// LogTail is the end of the daemon's log.
func (n *Node) LogTail(lines int) string {
	b, err := os.ReadFile(n.Log())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Command is a command of the daemon's own program on this node.
func (n *Node) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(n.Dir, "bin/criserver"), append(slices.Clone(n.args), args...)...)
}

// Debug is the socket on which the daemon tells of its work.
func (n *Node) Debug() string { return filepath.Join(n.State(), "debug.sock") }

// Crictl is a command of the real crictl on this node.
func (n *Node) Crictl(ctx context.Context, args ...string) *exec.Cmd {
	endpoint := "unix://" + n.Socket
	return exec.CommandContext(ctx, filepath.Join(*CacheDir, "bin/crictl"),
		append([]string{"--config", "/dev/null", "--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--timeout", "30s"}, args...)...)
}

// ServeImages starts the registry of the test images, unless the runtime of -endpoint has its own.
func ServeImages() error {
	if *Endpoint != "" {
		return nil
	}
	indexes, err := filepath.Glob(filepath.Join(*CacheDir, "images/*/index.json"))
	if err != nil {
		return err
	}
	if len(indexes) == 0 {
		return fmt.Errorf("no images in %s: `make images` makes them", *CacheDir)
	}
	var layouts []*oci.Layout
	for _, index := range indexes {
		l, err := oci.Open(filepath.Dir(index))
		if err != nil {
			return err
		}
		layouts = append(layouts, l)
	}
	return Serve(layouts...)
}

// Serve starts a registry at -registry.
func Serve(layouts ...*oci.Layout) error {
	lis, err := net.Listen("tcp", *registry)
	if err != nil {
		return err
	}
	go func() { _ = http.Serve(lis, oci.NewRegistry(layouts...)) }() // ends with the node
	return nil
}

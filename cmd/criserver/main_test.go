package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cni"
	"github.com/criserver/criserver/pkg/config"
)

// TestMain is also the daemon itself: the test executes its own binary.
func TestMain(m *testing.M) {
	if os.Getenv("CRISERVER_TEST_DAEMON") != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made")
	f, err := lock(dir, "state")
	must(t, err)
	want := fmt.Sprintf("state: the directory %s is in use by another criserver, pid %d:", dir, os.Getpid())
	if _, err := lock(dir, "state"); err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("a second lock: %v, want %s", err, want)
	}
	must(t, f.Close())
	f, err = lock(dir, "state")
	must(t, err)
	must(t, f.Close())
}

func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "cri") // a short path
	must(t, err)
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "made", "sock")
	l, err := listen(path)
	must(t, err)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "another program serves "+path) {
		t.Errorf("a socket that is served: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	must(t, l.Close())
	l, err = listen(path) // stale
	must(t, err)
	must(t, l.Close())
	must(t, os.WriteFile(path, nil, 0o600))
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), path+" is in the way") {
		t.Errorf("a file in the way: %v", err)
	}
}

func TestFlagsWin(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	must(t, os.WriteFile(file, []byte("root = '/from/file'\nlog_level = 'error'\n"), 0o600))
	var out bytes.Buffer
	cmd := command()
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"config", "--config", file, "--log-level", "debug", "--state", "/from/flag"})
	must(t, cmd.Execute())
	for _, want := range []string{"root = '/from/file'", "log_level = 'debug'", "state = '/from/flag'", "listen = '/run/criserver/criserver.sock'"} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("no %s in %s", want, out.String())
		}
	}
	for _, args := range [][]string{{"config", "--config", file, "--root", "x"}, {"config", "x"}, {"x"}, {"--config", "/nowhere"}, {"--pids-limit", "1"}} {
		cmd := command()
		cmd.SetArgs(args)
		cmd.SetErr(&bytes.Buffer{})
		if err := cmd.Execute(); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}

func TestSeccompProfile(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`: "",
		`{"defaultAction":"SCMP_ACT_ERRNO","archMap":[]}`:                                              "OCI's form",
		`{"syscalls":[]}`: "defaultAction is missing",
		`nonsense`:        "OCI's form",
	} {
		path := filepath.Join(dir, "p.json")
		must(t, os.WriteFile(path, []byte(text), 0o600))
		c := config.Default()
		c.Defaults.SeccompProfile = path
		d, err := containerDefaults(c)
		if want == "" && (err != nil || d.SeccompProfile == nil || len(d.SeccompProfile.Syscalls) != 1) {
			t.Errorf("%s: %+v, %v", text, d.SeccompProfile, err)
		}
		if want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path)) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// TestSampleNetwork sees that the sample network needs no plugin binaries.
func TestSampleNetwork(t *testing.T) {
	dir := t.TempDir()
	sample, err := os.ReadFile("../../deploy/10-criserver.conflist")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "10-criserver.conflist"), sample, 0o600))
	n, err := cni.Open(cni.Options{ConfDir: dir, Cache: t.TempDir(), Builtin: true})
	must(t, err)
	defer n.Close()
	if err := n.Status(); err != nil {
		t.Errorf("status: %v", err)
	}
	if !strings.Contains(string(n.Config()), `"cni0"`) {
		t.Errorf("the configuration in force is %s", n.Config())
	}
}

// TestUnit holds the systemd unit to what the daemon relies on.
// rows: D-175
func TestUnit(t *testing.T) {
	f, err := os.Open("../../deploy/criserver.service")
	must(t, err)
	defer f.Close()
	options, err := unit.DeserializeOptions(f)
	must(t, err)
	got := map[string]string{}
	for _, o := range options {
		got[o.Section+"."+o.Name] = o.Value
	}
	for key, want := range map[string]string{
		"Unit.Before":  "kubelet.service",
		"Service.Type": "notify", "Service.Restart": "always", "Service.KillMode": "process", "Service.Delegate": "yes",
		"Service.ExecReload": "/bin/kill -HUP $MAINPID", "Service.OOMScoreAdjust": "-999", "Service.TasksMax": "infinity",
		"Service.LimitNPROC": "infinity", "Service.LimitCORE": "infinity", "Install.WantedBy": "multi-user.target",
	} {
		if got[key] != want {
			t.Errorf("%s=%s, want %s", key, got[key], want)
		}
	}
	cmd := command()
	if args := strings.Fields(got["Service.ExecStart"]); filepath.Base(args[0]) != cmd.Name() || cmd.ParseFlags(args[1:]) != nil {
		t.Errorf("ExecStart=%s", got["Service.ExecStart"])
	}
}

// TestSocketForKubernetes: kubeadm and the kubelet look for other runtimes' sockets, so their configurations name ours.
// rows: D-170
func TestSocketForKubernetes(t *testing.T) {
	for file, key := range map[string]string{"kubeadm.yaml": "criSocket", "kubelet.yaml": "containerRuntimeEndpoint"} {
		text, err := os.ReadFile("../../deploy/kubernetes/" + file)
		must(t, err)
		if want := key + ": unix://" + config.Default().Listen + "\n"; !strings.Contains(string(text), want) {
			t.Errorf("%s does not say %s", file, want)
		}
	}
}

// rig is a daemon in a process of its own, with everything below one directory.
type rig struct {
	dir, shim string
	log       bytes.Buffer
	notify    *net.UnixConn
	cmd       *exec.Cmd
	exited    chan error
}

func newRig(t *testing.T) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri") // a short path
	must(t, err)
	r := &rig{dir: dir, shim: filepath.Join(dir, "bin")}
	build := exec.Command("go", "build", "-tags", "netgo osusergo seccomp runc_nocriu", "-o", filepath.Join(r.shim, "criserver-shim"), "../criserver-shim")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	r.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	must(t, err)
	must(t, r.notify.SetReadDeadline(time.Now().Add(time.Minute)))
	r.configure(t, "")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the daemon:\n%s", r.log.String())
		}
		_ = r.notify.Close()
		r.endShim(t)
		_ = unix.Unmount(filepath.Join(dir, "run", "rootfs"), unix.MNT_DETACH)
		must(t, os.RemoveAll(dir))
	})
	return r
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// configure writes the configuration, with more lines for its top.
func (r *rig) configure(t *testing.T, more string) {
	t.Helper()
	text := fmt.Sprintf("%s\nlisten = '%s'\nroot = '%s'\nstate = '%s'\n[cni]\nconf_dir = '%s'\n[nri]\nsocket = '%s'\n",
		more, r.path("sock"), r.path("root"), r.path("run"), r.path("net.d"), r.path("nri"))
	must(t, os.WriteFile(r.path("config.toml"), []byte(text), 0o600))
}

func (r *rig) command() *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", "--config", r.path("config.toml"))
	cmd.Env = append(os.Environ(), "CRISERVER_TEST_DAEMON=1", "NOTIFY_SOCKET="+r.path("notify"), "PATH="+r.shim+":"+os.Getenv("PATH"))
	return cmd
}

func (r *rig) start(t *testing.T) {
	t.Helper()
	r.cmd = r.command()
	r.cmd.Stderr = &r.log
	must(t, r.cmd.Start())
	r.exited = make(chan error, 1)
	go func() { r.exited <- r.cmd.Wait() }()
	t.Cleanup(func() { _ = r.cmd.Process.Kill() })
	r.told(t, "READY=1")
}

// told waits for a message to systemd.
func (r *rig) told(t *testing.T, want string) {
	t.Helper()
	var b [4096]byte
	n, err := r.notify.Read(b[:])
	if got := string(b[:n]); err != nil || !strings.HasPrefix(got, want) {
		t.Fatalf("systemd was told %q, %v; want %q", got, err, want)
	}
}

func (r *rig) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	must(t, r.cmd.Process.Signal(sig))
}

func (r *rig) shimPid(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(r.path("run/shim.pid"))
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	must(t, err)
	return pid
}

func (r *rig) endShim(t *testing.T) {
	if _, err := os.Stat(r.path("run/shim.pid")); err != nil {
		return
	}
	pid := r.shimPid(t)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	must(t, unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0))
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 10000)
	if err != nil || n != 1 {
		t.Errorf("the shim, pid %d, lives on: %v", pid, err)
	}
}

// rows: D-176, D-177
func TestDaemon(t *testing.T) {
	r := newRig(t)
	r.start(t)
	conn, err := grpc.NewClient("unix://"+r.path("sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	v, err := client.Version(ctx, &runtimeapi.VersionRequest{})
	must(t, err)
	if v.RuntimeName != "criserver" || v.RuntimeVersion != version {
		t.Errorf("version: %v", v)
	}
	info, err := client.Status(ctx, &runtimeapi.StatusRequest{Verbose: true})
	must(t, err)
	if all := fmt.Sprint(info.Info); !strings.Contains(all, r.path("net.d")) {
		t.Errorf("the configuration is not in the verbose status: %s", all)
	}

	out, err := r.command().CombinedOutput()
	if err == nil || !strings.Contains(string(out), fmt.Sprintf("in use by another criserver, pid %d", r.cmd.Process.Pid)) {
		t.Errorf("a second daemon: %v, %s", err, out)
	}

	r.configure(t, "log_level = 'debug'\n[streaming]\nidle_timeout = '1h'\n[image]\nparallel = 5\n[handler.x]\n[defaults]\n") // listen etc. stand in the wrong table
	r.signal(t, unix.SIGHUP)
	r.told(t, "RELOADING=1\nMONOTONIC_USEC=")
	r.told(t, "READY=1")
	must(t, os.WriteFile(r.path("config.toml"), []byte(fmt.Sprintf("log_level = 'debug'\nlisten = '%s'\nroot = '%s'\nstate = '%s'\n[cni]\nconf_dir = '%s'\n[nri]\nsocket = '%s'\n[streaming]\nidle_timeout = '1h'\n[image]\nparallel = 5\n",
		r.path("sock"), r.path("root"), r.path("run"), r.path("net.d"), r.path("nri"))), 0o600))
	r.signal(t, unix.SIGHUP)
	r.told(t, "RELOADING=1")
	r.told(t, "READY=1")

	pid := r.shimPid(t)
	r.signal(t, unix.SIGKILL)
	<-r.exited
	r.start(t) // in place of the socket that was left
	if again := r.shimPid(t); again != pid {
		t.Errorf("the shim was replaced: %d, then %d", pid, again)
	}
	_, err = client.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	must(t, err)
	r.signal(t, unix.SIGTERM)
	r.told(t, "STOPPING=1")
	if err := <-r.exited; err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if _, err := os.Lstat(r.path("sock")); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("the shim ended with the daemon: %v", err)
	}
	for _, want := range []string{
		"The configuration was not reloaded", "unknown key defaults.listen; do you mean listen?",
		`changed="image.parallel log_level"`, "keys=streaming.idle_timeout",
	} {
		if !strings.Contains(strings.ReplaceAll(r.log.String(), `\"`, `"`), want) {
			t.Errorf("the log has no %s", want)
		}
	}
}

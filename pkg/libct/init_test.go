package libct

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/hold"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// namespaces opens new ones, as the daemon pins those of a pod.
func (n *node) namespaces(kinds ...specs.LinuxNamespaceType) (files []*os.File) {
	n.t.Helper()
	flags := map[specs.LinuxNamespaceType]uintptr{
		specs.NetworkNamespace: unix.CLONE_NEWNET, specs.IPCNamespace: unix.CLONE_NEWIPC,
		specs.UTSNamespace: unix.CLONE_NEWUTS, specs.UserNamespace: unix.CLONE_NEWUSER,
	}
	names := map[specs.LinuxNamespaceType]string{
		specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.UserNamespace: "user",
	}
	var all uintptr
	for _, kind := range kinds {
		all |= flags[kind]
	}
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 300000, Size: 65536}}
	pid, release, err := hold.Namespaces(n.t.Context(), maps, maps, all)
	n.must(err)
	defer release()
	for _, kind := range kinds {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, names[kind]))
		n.must(err)
		files = append(files, f)
	}
	return files
}

func namespaceOf(t testing.TB, path string) string {
	t.Helper()
	link, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestInit(t *testing.T) {
	n := newNode(t)
	for _, kinds := range [][]specs.LinuxNamespaceType{
		{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace},
		{specs.UserNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace},
	} {
		pod := fmt.Sprint("pod", len(kinds))
		files := n.namespaces(kinds...)
		defer wire.CloseFiles(files)
		score := 500
		pid, err := n.StartInit(t.Context(), pod, wire.InitArgs{
			Join: kinds, CgroupPath: n.cgroup + "/" + pod, OOMScoreAdj: &score,
		}, nil, files...)
		n.must(err)
		for i, name := range []string{"net", "ipc", "uts"} {
			pinned := namespaceOf(t, fmt.Sprintf("/proc/self/fd/%d", files[len(files)-3+i].Fd()))
			if got := namespaceOf(t, fmt.Sprintf("/proc/%d/ns/%s", pid, name)); got != pinned {
				t.Errorf("%s: init is in %s, want %s", pod, got, pinned)
			}
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
		n.must(err)
		if string(b) != "500\n" {
			t.Errorf("oom_score_adj %q", b)
		}
		b, err = os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		n.must(err)
		if !strings.Contains(string(b), n.cgroup+"/"+pod+"\n") {
			t.Errorf("cgroups %s", b)
		}
		list, err := n.List(t.Context())
		n.must(err)
		if got := list[len(list)-1]; len(kinds) == 3 && (!got.Init || got.Pid != pid || !got.Started) {
			t.Errorf("list %+v", list)
		}
	}
}

// A container in the PID namespace of its pod: the init reaps what it orphans, and
// what it leaves behind ends with it.
// rows: N-03, D-108
func TestSharedPid(t *testing.T) {
	n := newNode(t)
	pid, err := n.StartInit(t.Context(), "pod", wire.InitArgs{}, nil)
	n.must(err)
	join := func(id string, args ...string) {
		spec := n.spec(id, args...)
		spec.Linux.Namespaces[0].Path = fmt.Sprintf("/proc/%d/ns/pid", pid)
		n.create(spec, id)
		n.must(n.Start(t.Context(), id))
	}
	join("watcher", "sleep", "1000")
	join("c", "sh", "-c", "(sleep 0.1 &); sh -c 'sleep 5001 & sleep 0.2'; exit 12")
	if out, _ := n.execOut("watcher", "ps"); !strings.Contains(out, "1 65534    {pause}") {
		t.Errorf("no init: %s", out)
	}
	if e := n.exit("c"); e.Code != 12 {
		t.Errorf("exit %+v", e)
	}
	n.until("left processes are gone and reaped", func() bool {
		out, _ := n.execOut("watcher", "ps")
		return !strings.Contains(out, "5001") && !strings.Contains(out, "[")
	})
	n.killShim()
	n.awaitReplacement()
	n.must(n.Signal(t.Context(), "pod", unix.SIGTERM, false))
	if e := n.exit("pod"); e.Code != 0 || e.Unknown {
		t.Errorf("init: exit %+v", e)
	}
	if e := n.exit("watcher"); e.Code != 137 { // the kernel's way
		t.Errorf("exit %+v", e)
	}
}

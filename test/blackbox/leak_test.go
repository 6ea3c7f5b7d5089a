package blackbox

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/criserver/criserver/test/node"
)

// traces is all that pods and containers can leave behind on a node, each with a word on what it is.
type traces map[string]bool

// leavesNothing checks at the end of the test that no trace is there that was not before. Traces that need a moment to
// go, such as those of a network interface, have five seconds.
func leavesNothing(t *testing.T) {
	t.Helper()
	if guarded[t] {
		return
	}
	guarded[t] = true
	before := look(t)
	t.Cleanup(func() {
		delete(guarded, t)
		var left []string
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if left = look(t).since(before); len(left) == 0 {
				return
			}
		}
		t.Errorf("left behind:\n  %s", strings.Join(left, "\n  "))
	})
}

var guarded = map[*testing.T]bool{} // tests run one after the other

func (tr traces) since(before traces) (more []string) {
	for _, s := range slices.Sorted(maps.Keys(tr)) {
		if !before[s] {
			more = append(more, s)
		}
	}
	return more
}

func look(t *testing.T) traces {
	t.Helper()
	tr := traces{}
	for _, dir := range node.Cgroups() {
		tr["cgroup "+dir] = true
	}
	if *node.Endpoint != "" {
		return tr // its machine is not ours alone
	}
	tr.mounts("/proc/self/mountinfo", "")
	tr.mounts(fmt.Sprintf("/proc/%d/mountinfo", n.ShimPid()), " of the shim")
	tr.network(t)
	tr.processes()
	tr.files(n.State())
	tr.files(n.Root())
	tr.files(filepath.Join(n.Dir, "ipam"))
	return tr
}

func (tr traces) mounts(mountinfo, whose string) {
	b, _ := os.ReadFile(mountinfo) // no shim, no mounts
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 5 {
			tr["mount"+whose+" "+f[4]] = true
		}
	}
}

func (tr traces) network(t *testing.T) {
	t.Helper()
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		tr["link "+l.Attrs().Name] = true
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			continue // it has just gone
		}
		for _, a := range addrs {
			tr["address "+a.IPNet.String()+" of "+l.Attrs().Name] = true
		}
	}
	out, err := exec.CommandContext(context.Background(), "nft", "list", "ruleset").Output()
	if err != nil {
		t.Fatalf("nft list ruleset: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		tr["nft "+counters.ReplaceAllString(strings.TrimSpace(line), "")] = true
	}
}

var counters = regexp.MustCompile(`counter packets \d+ bytes \d+ ?|expires [0-9a-z]+`)

func (tr traces) processes() {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue // it has just ended
		}
		end := strings.LastIndexByte(string(b), ')')
		start := strings.IndexByte(string(b), '(')
		f := strings.Fields(string(b[end+1:]))
		if parent := f[1]; parent == strconv.Itoa(os.Getpid()) {
			continue // the daemon, crictl: the test's own
		}
		pid := filepath.Base(filepath.Dir(stat))
		if pid == strconv.Itoa(n.ShimPid()) {
			continue // a test may have had it replaced
		}
		what := "process"
		if f[0] == "Z" {
			what = "zombie"
		}
		tr[fmt.Sprintf("%s %s %s", what, pid, b[start:end+1])] = true
	}
}

// volatile are files that come and go with no object: databases, downloads, layers, the allocator's notes.
var volatile = regexp.MustCompile(`last_reserved_ip|\.db$|/blobs/|/snapshots/|/ingest/`)

func (tr traces) files(dir string) {
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !volatile.MatchString(p) {
			tr["file "+p] = true
		}
		if err == nil && d.IsDir() && d.Name() == "snapshots" {
			return filepath.SkipDir // image layers
		}
		return nil
	})
}

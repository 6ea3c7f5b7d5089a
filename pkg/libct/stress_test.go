package libct

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/libct/wire"
)

// Many containers at once, while the shim is killed again and again: each call
// works, or fails in a way that Delete clears up, and every exit is told.
func TestStress(t *testing.T) {
	n := newNode(t)
	const workers, rounds, kills = 8, 6, 3
	var g errgroup.Group
	for w := range workers {
		g.Go(func() error {
			for r := range rounds {
				if err := n.oneLife(fmt.Sprintf("c%d-%d", w, r)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for range kills {
		before := len(n.told())
		n.until("some containers", func() bool { return len(n.told()) > before+5 })
		n.killShim()
		n.awaitReplacement()
	}
	n.must(g.Wait())
	if main := namespaceOf(t, fmt.Sprintf("/proc/%d/ns/mnt", n.shimPid())); main != namespaceOf(t, "/proc/self/ns/mnt") {
		t.Errorf("the shim's main thread is in mount namespace %s", main)
	}
}

// told returns the IDs whose exits were told.
func (n *node) told() (ids []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id := range n.exits {
		ids = append(ids, id)
	}
	return ids
}

// oneLife brings a container up and down, again if the shim died over it.
func (n *node) oneLife(id string) error {
	ctx := n.t.Context()
	for {
		err := n.tryLife(id)
		if err == nil {
			return n.Delete(ctx, id, "")
		}
		if !strings.Contains(err.Error(), errHungUp.Error()) && !strings.Contains(err.Error(), "not mounted") {
			return fmt.Errorf("%s: %w", id, err)
		}
		if err := n.Delete(ctx, id, ""); err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
	}
}

func (n *node) tryLife(id string) error {
	ctx := n.t.Context()
	upper, work := n.layers+"/upper-"+id, n.layers+"/work-"+id
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	root, err := n.MountRootfs(ctx, id, wire.Rootfs{
		Lower: []string{n.layers + "/2", n.layers + "/1"}, Upper: upper, Work: work,
	})
	if err != nil {
		return err
	}
	_ = root.Close()
	if _, err := n.Create(ctx, id, CreateOptions{Spec: n.spec(id, "sleep", "1000"), LogPath: n.logPath(id)}); err != nil {
		return err
	}
	if err := n.Start(ctx, id); err != nil {
		return err
	}
	p, err := n.Exec(ctx, id, execProcess("sh", "-c", "exit 6"), Stdio{})
	if err != nil {
		return err
	}
	defer p.Close()
	if e, err := p.Wait(ctx); err != nil || e.Code != 6 {
		return fmt.Errorf("exec: %+v %w", e, err)
	}
	if err := n.Signal(ctx, id, unix.SIGKILL, false); err != nil {
		return err
	}
	if e, ok := n.awaitExit(id); !ok || e.Code != 137 {
		return fmt.Errorf("exit %+v %t", e, ok)
	}
	return nil
}

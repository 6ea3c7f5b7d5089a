package builtin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containernetworking/plugins/plugins/ipam/host-local/backend/disk"
	"golang.org/x/sys/unix"
)

// defaultDataDir is where host-local keeps its addresses when the configuration names no dataDir.
const defaultDataDir = "/var/lib/cni/networks"

// lockPoll is how often a lock that another process holds is tried.
const lockPoll = time.Millisecond

// stores holds what is known of each directory of addresses. Its zero value is ready.
type stores struct {
	mu   sync.Mutex
	dirs map[string]*directory
}

// directory is the memory of one directory of addresses. A file there is named after an address and holds its owner.
//
// The reference reads every file to find those of one container, so its cost grows with the number of pods. Here the
// owners are remembered, and read anew when the directory's modification time says that somebody else has changed it.
type directory struct {
	path   string
	sem    chan struct{} // held by the one goroutine of this process that holds the lock file
	stamp  time.Time     // modification time of the directory that files is true for
	owners map[string][]string
}

func (s *stores) directory(path string) *directory {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.dirs[path]
	if d == nil {
		if s.dirs == nil {
			s.dirs = map[string]*directory{}
		}
		d = &directory{path: path, sem: make(chan struct{}, 1)}
		s.dirs[path] = d
	}
	return d
}

// store is host-local's disk store for the time of one call: its files and its lock, with the memory of a directory.
// Lock waits no longer than the context. The allocator does not look at its error, so without the lock Reserve fails and
// the rest does nothing.
type store struct {
	*disk.Store
	*directory
	ctx    context.Context
	lock   *os.File
	failed error // of the last Lock; nil: the lock is held
}

var errNotLocked = errors.New("the addresses are not locked")

func (s *stores) open(ctx context.Context, network, dataDir string) (*store, error) {
	if dataDir == "" {
		dataDir = defaultDataDir
	}
	files, err := disk.New(network, dataDir)
	if err != nil {
		return nil, fmt.Errorf("open the addresses of network %q in %s: %w", network, dataDir, err)
	}
	return &store{Store: files, ctx: ctx, failed: errNotLocked, directory: s.directory(filepath.Join(dataDir, network))}, nil
}

// owner is what the file of an address holds.
func owner(id, ifname string) string { return strings.TrimSpace(id) + disk.LineBreak + ifname }

// Lock takes the lock of the directory, in this process and among processes, and makes its memory true.
func (s *store) Lock() error {
	s.failed = s.acquire()
	return s.failed
}

func (s *store) acquire() error {
	select {
	case s.sem <- struct{}{}:
	case <-s.ctx.Done():
		return fmt.Errorf("wait for the addresses in %s: %w", s.path, s.ctx.Err())
	}
	err := s.flock()
	if err == nil {
		err = s.refresh()
	}
	if err != nil {
		s.release()
	}
	return err
}

func (s *store) flock() error {
	f, err := os.OpenFile(filepath.Join(s.path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	s.lock = f
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		select {
		case <-s.ctx.Done():
			return fmt.Errorf("lock %s, which another process holds: %w", f.Name(), s.ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// refresh reads the directory if it is not as it was left.
func (s *store) refresh() error {
	info, err := os.Stat(s.path)
	if err != nil {
		return err
	}
	if s.owners != nil && info.ModTime().Equal(s.stamp) {
		return nil
	}
	entries, err := os.ReadDir(s.path)
	if err != nil {
		return err
	}
	s.owners = make(map[string][]string, len(entries))
	for _, e := range entries {
		if net.ParseIP(e.Name()) == nil {
			continue
		}
		data, err := os.ReadFile(filepath.Join(s.path, e.Name()))
		if err != nil {
			continue // removed by hand meanwhile, or unreadable: not ours to release
		}
		key := strings.TrimSpace(string(data))
		s.owners[key] = append(s.owners[key], e.Name())
	}
	s.stamp = info.ModTime()
	return nil
}

// Unlock gives the lock back and remembers the directory as it stands.
func (s *store) Unlock() error {
	if s.failed != nil {
		return s.failed
	}
	s.failed = errNotLocked
	info, err := os.Stat(s.path)
	if err != nil {
		s.owners = nil
	} else {
		s.stamp = info.ModTime()
	}
	s.release()
	return err
}

func (s *store) release() {
	if s.lock != nil {
		s.lock.Close()
		s.lock = nil
	}
	<-s.sem
}

// Reserve takes an address if nobody has it. The lock is held.
func (s *store) Reserve(id, ifname string, ip net.IP, rangeID string) (bool, error) {
	if s.failed != nil {
		return false, s.failed
	}
	ok, err := s.Store.Reserve(id, ifname, ip, rangeID)
	if ok && err == nil {
		key := owner(id, ifname)
		s.owners[key] = append(s.owners[key], ip.String())
	}
	return ok, err
}

// GetByID returns the addresses of an interface. The lock is held.
func (s *store) GetByID(id, ifname string) []net.IP {
	if s.failed != nil {
		return nil
	}
	var ips []net.IP
	for _, key := range []string{owner(id, ifname), strings.TrimSpace(id)} {
		for _, name := range s.owners[key] {
			ips = append(ips, net.ParseIP(name))
		}
	}
	return ips
}

// ReleaseByID gives back the addresses of an interface, also those that a plugin before 0.7 wrote without its name.
// The lock is held.
func (s *store) ReleaseByID(id, ifname string) error {
	if s.failed != nil {
		return s.failed
	}
	for _, key := range []string{owner(id, ifname), strings.TrimSpace(id)} {
		for _, name := range s.owners[key] {
			if err := os.Remove(filepath.Join(s.path, name)); err != nil && !os.IsNotExist(err) {
				return fmt.Errorf("release address %s: %w", name, err)
			}
		}
		delete(s.owners, key)
	}
	return nil
}

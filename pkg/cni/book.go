package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// record says that a pod is attached, or was about to be: all that DEL needs, whatever the configuration is by then.
// It is written before ADD and removed after DEL, as one file, replaced by rename.
type record struct {
	Pod    Pod             // with the ports that are mapped only, and no annotations unless a plugin takes them
	Config json.RawMessage // the network's, with all plugins

	ips  []netip.Addr // known for attachments of this process only
	mine bool         // attached by this process, so its caller will tear it down
}

// book holds the records, and what may be held by one attachment only: host ports and addresses.
type book struct {
	dir string

	mu        sync.Mutex
	records   map[string]*record     // by pod ID
	ports     map[portKey][]*record  // by protocol and host port
	addresses map[netip.Addr]*record // of attachments of this process
}

// openBook reads the records. One that cannot be read is put aside.
func openBook(dir string, log *logrus.Entry) (*book, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cni: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cni: read the attachments: %w", err)
	}
	b := &book{dir: dir, records: map[string]*record{}, ports: map[portKey][]*record{}, addresses: map[netip.Addr]*record{}}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), recordSuffix)
		if !ok {
			continue
		}
		r := &record{}
		path := filepath.Join(dir, e.Name())
		data, err := readLimited(path, 2*maxConfigSize)
		if err == nil {
			err = json.Unmarshal(data, r)
		}
		if err == nil && r.Pod.ID != id {
			err = fmt.Errorf("it is of pod %q", r.Pod.ID)
		}
		if err != nil {
			log.WithError(err).WithField("file", path).Error("cni: record of an attachment cannot be read; put aside")
			_ = os.Rename(path, path+".bad") // what cannot be renamed will be reported again
			continue
		}
		b.enter(r)
	}
	return b, nil
}

const recordSuffix = ".json"

func (b *book) path(id string) string { return filepath.Join(b.dir, id+recordSuffix) }

func (b *book) get(id string) *record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.records[id]
}

// conflict is a host port that another attachment holds.
type conflict struct {
	port   PortMapping
	holder *record
}

func (c *conflict) Error() string {
	return fmt.Sprintf("cni: host port %s is held by pod %s/%s (%s); stop it or use another port",
		c.port, c.holder.Pod.Namespace, c.holder.Pod.Name, c.holder.Pod.ID)
}

func (c *conflict) Unwrap() error { return errdefs.ErrAlreadyExists }

// claim enters a record, on disk too. It is a *conflict if one of its host ports is held by another.
func (b *book) claim(r *record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, port := range r.Pod.Ports {
		for _, other := range b.ports[port.key()] {
			if other.Pod.ID != r.Pod.ID && slices.ContainsFunc(other.Pod.Ports, port.overlaps) {
				return &conflict{port: port, holder: other}
			}
		}
	}
	if err := b.write(r); err != nil {
		return fmt.Errorf("cni: write the record of the attachment: %w", err)
	}
	b.forget(r.Pod.ID) // of an earlier try
	b.enter(r)
	return nil
}

func (b *book) enter(r *record) {
	b.records[r.Pod.ID] = r
	for _, port := range r.Pod.Ports {
		b.ports[port.key()] = append(b.ports[port.key()], r)
	}
}

func (b *book) forget(id string) {
	r := b.records[id]
	if r == nil {
		return
	}
	delete(b.records, id)
	for _, port := range r.Pod.Ports {
		k := port.key()
		b.ports[k] = slices.DeleteFunc(b.ports[k], func(other *record) bool { return other == r })
		if len(b.ports[k]) == 0 {
			delete(b.ports, k)
		}
	}
	for _, ip := range r.ips {
		if b.addresses[ip] == r {
			delete(b.addresses, ip)
		}
	}
}

func (b *book) write(r *record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	path := b.path(r.Pod.ID)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// hold enters the addresses that a pod got. It is an error if another pod of this process has one of them.
func (b *book) hold(id string, ips []netip.Addr) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ip := range ips {
		if other := b.addresses[ip]; other != nil && other.Pod.ID != id {
			return fmt.Errorf("cni: address %s was given to two pods, also to %s/%s (%s); see the network's IPAM plugin: %w",
				ip, other.Pod.Namespace, other.Pod.Name, other.Pod.ID, errdefs.ErrAlreadyExists)
		}
	}
	r := b.records[id]
	r.ips = ips
	for _, ip := range ips {
		b.addresses[ip] = r
	}
	return nil
}

// mine returns the IDs of the pods that this process has attached.
func (b *book) mine() map[string]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	ids := map[string]bool{}
	for id, r := range b.records {
		if r.mine {
			ids[id] = true
		}
	}
	return ids
}

// others returns the pods that have a record and are not among those.
func (b *book) others(ids map[string]bool) []Pod {
	b.mu.Lock()
	defer b.mu.Unlock()
	var pods []Pod
	for id, r := range b.records {
		if !ids[id] && !r.mine {
			pods = append(pods, r.Pod)
		}
	}
	return pods
}

// drop removes a record, if there is one.
func (b *book) drop(id string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := os.Remove(b.path(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cni: remove the record of the attachment: %w", err)
	}
	b.forget(id)
	return nil
}

// live says whether there is a network namespace at a path.
func live(path string) bool {
	var fs unix.Statfs_t
	return path != "" && unix.Statfs(path, &fs) == nil && (fs.Type == unix.NSFS_MAGIC || fs.Type == unix.PROC_SUPER_MAGIC)
}

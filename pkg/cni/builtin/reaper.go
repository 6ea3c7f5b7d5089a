package builtin

import (
	"sync"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/sirupsen/logrus"
)

// reapAfter is how long a link that was cut off may wait for the death of its namespace.
const reapAfter = time.Second

// reaper deletes links some time after DEL has made them useless.
//
// Deleting a veth pair makes the kernel wait for RCU, 15 to 30 ms with the lock that all network configuration needs,
// while a namespace that dies takes its links along in the background, many at a time. A runtime drops the namespace
// right after DEL, so DEL only cuts the link off the bridge (bridge port state "disabled"): its address cannot answer
// any more and may be given away at once. What is still there after reapAfter, since its namespace lives on, is deleted.
// If this process ends before, the link stays cut off until its namespace ends.
type reaper struct {
	host netlinksafe.Handle
	log  *logrus.Entry

	deleting sync.Mutex // held while links are deleted, so that flush returns when all are; taken before mu
	mu       sync.Mutex
	pending  map[int]string // by link index
	timer    *time.Timer    // runs flush; nil when nothing is pending
}

func newReaper(host netlinksafe.Handle, log *logrus.Entry) *reaper {
	return &reaper{host: host, log: log, pending: map[int]string{}}
}

func (r *reaper) add(index int, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending[index] = name
	if r.timer == nil {
		r.timer = time.AfterFunc(reapAfter, r.flush)
	}
}

// flush deletes what is pending and waits for it. An index is not given to another link while the kernel counts upwards;
// the name is compared for the case that it was.
func (r *reaper) flush() {
	r.deleting.Lock()
	defer r.deleting.Unlock()
	for index, name := range r.take() {
		l, err := r.host.LinkByIndex(index)
		if err != nil || l.Attrs().Name != name {
			continue
		}
		if err := r.host.LinkDel(l); err != nil {
			r.log.WithError(err).WithField("link", name).Debug("bridge: link went away by itself")
		}
	}
}

func (r *reaper) take() map[int]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
	taken := r.pending
	r.pending = map[int]string{}
	return taken
}

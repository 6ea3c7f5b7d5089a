package sandbox

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/sandbox/store"
	"github.com/criserver/criserver/pkg/stats"
)

// idLen is the length of an ID: 32 random bytes in hexadecimal digits.
const idLen = 64

func newID() string {
	var b [idLen / 2]byte
	rand.Read(b[:]) // never fails, by its documentation
	return hex.EncodeToString(b[:])
}

// podKey is what makes a pod one: two requests with the same key mean the same pod.
type podKey struct {
	name, namespace, uid string
	attempt              uint32
}

// containerKey does the same within a pod.
type containerKey struct {
	name    string
	attempt uint32
}

// pod is the living object; all but its mutex-guarded fields never change.
type pod struct {
	id   string
	key  podKey
	op   opLock
	made *creation

	mu         sync.Mutex
	rec        podRecord
	stage      string // of its creation, for people
	hooked     hookState
	containers map[containerKey]*container
}

// container is the living object.
type container struct {
	id   string
	key  containerKey
	pod  *pod
	op   opLock
	made *creation
	gone chan struct{} // closed when the process has exited and rec says so

	limits  opLock        // held while limits change; taken last
	endTold chan struct{} // closed when hooks have heard of the exit

	process atomic.Pointer[specs.Spec] // see firstProcess

	mu       sync.Mutex
	rec      containerRecord
	stage    string // of its creation, for people
	starting bool   // StartContainer is between its check and its record
	exit     *exit  // that came while starting
	stop     stopState
	cgroup   *stats.Cgroup   // once it was found
	uses     []digest.Digest // images, to be released once
	hooked   hookState
	newSpec  *specs.Spec // while it is being created, once hooks may know of it
}

func (m *Manager) newPod(id string, key podKey, rec podRecord) *pod {
	return &pod{id: id, key: key, op: newOpLock(), made: newCreation(), rec: rec, containers: map[containerKey]*container{}}
}

func (m *Manager) newContainer(id string, key containerKey, p *pod, rec containerRecord) *container {
	return &container{id: id, key: key, pod: p, op: newOpLock(), made: newCreation(), rec: rec,
		gone: make(chan struct{}), limits: newOpLock(), endTold: make(chan struct{})}
}

// setPodState moves a pod to a state and makes that durable; change may alter the record along with it.
func (m *Manager) setPodState(p *pod, to PodState, change func(*podRecord)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := checkTransition(podTransitions, "pod", p.id, p.rec.State, to); err != nil {
		return err
	}
	rec := p.rec
	rec.State = to
	if change != nil {
		change(&rec)
	}
	if err := m.put(store.Pods, p.id, rec, to != PodCreating && to != PodReady); err != nil {
		return err
	}
	p.rec = rec
	return nil
}

// setContainerState is setPodState for a container.
func (m *Manager) setContainerState(c *container, to ContainerState, change func(*containerRecord)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return m.setContainerStateLocked(c, to, change)
}

func (m *Manager) setContainerStateLocked(c *container, to ContainerState, change func(*containerRecord)) error {
	if err := checkTransition(containerTransitions, "container", c.id, c.rec.State, to); err != nil {
		return err
	}
	rec := c.rec
	rec.State = to
	if change != nil {
		change(&rec)
	}
	if err := m.put(store.Containers, c.id, rec, to == ContainerExited || to == ContainerRemoving); err != nil {
		return err
	}
	c.rec = rec
	return nil
}

// put writes a record. A full disk must not keep an object from ending, for that
// is what makes room: the end then counts without its record, and after a restart
// is found out again, or begun again by whoever asked for it.
func (m *Manager) put(k store.Kind, id string, rec any, ends bool) error {
	err := m.store.Put(k, id, rec)
	if err == nil || !ends {
		return err
	}
	m.log.WithError(err).WithField("id", id).Error("An end could not be recorded; it counts all the same")
	return nil
}

func (p *pod) snapshot() Pod {
	p.mu.Lock()
	defer p.mu.Unlock()
	overhead, resources := p.rec.Overhead.M, p.rec.Resources.M
	if overhead == nil {
		overhead = p.rec.Config.M.GetLinux().GetOverhead()
	}
	if resources == nil {
		resources = p.rec.Config.M.GetLinux().GetResources()
	}
	return Pod{
		ID:        p.id,
		Overhead:  overhead,
		Resources: resources,
		State:     p.rec.State,
		Config:    p.rec.Config.M,
		Handler:   p.rec.Handler,
		IPs:       p.rec.IPs,
		CNI:       p.rec.CNI,
		InitPid:   p.rec.InitPid,
		CreatedAt: p.rec.CreatedAt,
	}
}

func (c *container) snapshot() Container {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Container{
		ID:         c.id,
		PodID:      c.pod.id,
		State:      c.rec.State,
		Config:     c.rec.Config.M,
		ImageID:    c.rec.ImageID,
		ImageRef:   c.rec.ImageRef,
		Volumes:    c.rec.Volumes,
		User:       c.rec.User,
		Pid:        c.rec.Pid,
		CreatedAt:  c.rec.CreatedAt,
		StartedAt:  c.rec.StartedAt,
		FinishedAt: c.rec.FinishedAt,
		ExitCode:   c.rec.ExitCode,
		Unknown:    c.rec.Unknown,
		Reason:     c.rec.Reason,
		Message:    c.rec.Message,
		LogPath:    c.rec.LogPath,
		Resources:  c.rec.Resources.M,
		StopSignal: c.rec.StopSignal,
	}
}

func (p *pod) state() PodState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.rec.State
}

func (c *container) state() ContainerState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.State
}

func (p *pod) all() []*container {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make([]*container, 0, len(p.containers))
	for _, c := range p.containers {
		all = append(all, c)
	}
	return all
}

// atStage notes what a creation is doing, for the error of a caller that cannot wait.
func (p *pod) atStage(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stage = s
}

func (c *container) atStage(s string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stage = s
}

func (p *pod) creating() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("creation of pod %s (%s/%s): %s", p.id, p.key.namespace, p.key.name, p.stage)
}

func (c *container) creating() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("creation of container %s (%s): %s", c.id, c.key.name, c.stage)
}

// find looks an ID or an unambiguous prefix of one up.
func find[T any](objects map[string]T, what, id string) (T, error) {
	var found T
	if id == "" {
		return found, fmt.Errorf("%s ID is empty: %w", what, errdefs.ErrInvalidArgument)
	}
	if o, ok := objects[id]; ok {
		return o, nil
	}
	n := 0
	if len(id) < idLen {
		for full, o := range objects {
			if strings.HasPrefix(full, id) {
				found, n = o, n+1
			}
		}
	}
	switch n {
	case 1:
		return found, nil
	case 0:
		return found, fmt.Errorf("%s %.80q: %w", what, id, errdefs.ErrNotFound)
	}
	return found, fmt.Errorf("%s ID %q is the beginning of %d IDs, give more of it: %w", what, id, n, errdefs.ErrInvalidArgument)
}

func (m *Manager) findPod(id string) (*pod, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return find(m.pods, "pod", id)
}

func (m *Manager) findContainer(id string) (*container, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return find(m.containers, "container", id)
}

func (m *Manager) allPods() []*pod {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]*pod, 0, len(m.pods))
	for _, p := range m.pods {
		all = append(all, p)
	}
	return all
}

func (m *Manager) allContainers() []*container {
	m.mu.RLock()
	defer m.mu.RUnlock()
	all := make([]*container, 0, len(m.containers))
	for _, c := range m.containers {
		all = append(all, c)
	}
	return all
}

// podSnapshot adds to a snapshot what follows from the ID.
func (m *Manager) podSnapshot(p *pod) Pod {
	s := p.snapshot()
	if !spec.HostNetwork(s.Config) {
		s.NetNS = m.pinPath(p.id, "net")
	}
	return s
}

// Pod returns a pod.
func (m *Manager) Pod(id string) (Pod, error) {
	p, err := m.findPod(id)
	if err != nil {
		return Pod{}, err
	}
	return m.podSnapshot(p), nil
}

// Pods returns all pods but those still being created, in no order.
func (m *Manager) Pods() []Pod {
	all := m.allPods()
	pods := make([]Pod, 0, len(all))
	for _, p := range all {
		if s := m.podSnapshot(p); s.State != PodCreating {
			pods = append(pods, s)
		}
	}
	return pods
}

// Container returns a container.
func (m *Manager) Container(id string) (Container, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return Container{}, err
	}
	return c.snapshot(), nil
}

// Containers returns all containers but those still being created, in no order.
func (m *Manager) Containers() []Container {
	all := m.allContainers()
	containers := make([]Container, 0, len(all))
	for _, c := range all {
		if s := c.snapshot(); s.State != ContainerCreating {
			containers = append(containers, s)
		}
	}
	return containers
}

// now is the time that records get: without a monotonic part, so that it is the same before and after a restart.
func now() time.Time { return time.Now().Round(0) }

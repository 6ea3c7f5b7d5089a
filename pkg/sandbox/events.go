package sandbox

import (
	"context"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// eventQueue is how many events a subscriber may lag behind before it is cut off.
const eventQueue = 4096

// broadcaster hands every event to every subscriber and waits for none.
type broadcaster struct {
	mu     sync.Mutex
	subs   map[chan Event]struct{}
	closed bool
}

func newBroadcaster() *broadcaster { return &broadcaster{subs: map[chan Event]struct{}{}} }

func (b *broadcaster) send(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.subs {
		select {
		case c <- e:
		default: // it lags: better a clear end than a gap
			delete(b.subs, c)
			close(c)
		}
	}
}

func (b *broadcaster) add() chan Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := make(chan Event, eventQueue)
	if b.closed {
		close(c)
		return c
	}
	b.subs[c] = struct{}{}
	return c
}

func (b *broadcaster) remove(c chan Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.subs[c]; ok {
		delete(b.subs, c)
		close(c)
	}
}

func (b *broadcaster) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for c := range b.subs {
		close(c)
	}
	b.subs = nil
}

// Subscribe delivers every event from now on until ctx ends. A subscriber that
// falls behind by more than the queue holds is cut off: the channel closes
// before ctx has ended, and the caller relists.
func (m *Manager) Subscribe(ctx context.Context) <-chan Event {
	c := m.events.add()
	context.AfterFunc(ctx, func() { m.events.remove(c) })
	return c
}

func (m *Manager) podEvent(t runtimeapi.ContainerEventType, id string) {
	m.events.send(Event{Type: t, Pod: id, Container: id, At: time.Now()})
}

func (m *Manager) containerEvent(t runtimeapi.ContainerEventType, c *container) {
	m.events.send(Event{Type: t, Pod: c.pod.id, Container: c.id, At: time.Now()})
}

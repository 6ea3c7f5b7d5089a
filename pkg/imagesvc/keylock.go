package imagesvc

import (
	"context"
	"sync"
)

// keyLock is a set of locks by name whose waiting honours a context. Its zero value is ready.
type keyLock struct {
	mu   sync.Mutex
	held map[string]*heldKey
}

type heldKey struct {
	token chan struct{} // full while somebody holds the key
	users int           // holder and waiters
}

// acquire waits for the key. The returned function gives it back.
func (l *keyLock) acquire(ctx context.Context, key string) (release func(), _ error) {
	l.mu.Lock()
	h := l.held[key]
	if h == nil {
		if l.held == nil {
			l.held = map[string]*heldKey{}
		}
		h = &heldKey{token: make(chan struct{}, 1)}
		l.held[key] = h
	}
	h.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if h.users--; h.users == 0 {
			delete(l.held, key)
		}
	}
	select {
	case h.token <- struct{}{}:
		return func() { <-h.token; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

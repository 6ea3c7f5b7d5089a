package streaming

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

const (
	ticketLife = time.Minute // that of k8s.io/cri-streaming: clients come at once
	maxTickets = 1000        // issued and not yet redeemed
)

// tickets are the sessions that clients may still come for, by the path of their URL.
type tickets struct {
	mu     sync.Mutex
	byPath map[string]*ticket
}

// handler serves the session of a client that came with a ticket.
type handler func(*session, *http.Request)

type ticket struct {
	serve  handler
	expiry *time.Timer
}

func newTickets() *tickets { return &tickets{byPath: map[string]*ticket{}} }

// issue makes a path that nobody can guess (128 random bits or more).
func (t *tickets) issue(kind string, serve handler) (string, error) {
	path := "/" + kind + "/" + rand.Text()
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.byPath) >= maxTickets {
		return "", fmt.Errorf("%d streaming sessions were asked for and nobody came: retry in a minute: %w", maxTickets, errdefs.ErrResourceExhausted)
	}
	t.byPath[path] = &ticket{serve: serve, expiry: time.AfterFunc(ticketLife, func() { t.redeem(path) })}
	return path, nil
}

// redeem takes the ticket away.
func (t *tickets) redeem(path string) (handler, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	ticket, ok := t.byPath[path]
	if !ok {
		return nil, false
	}
	delete(t.byPath, path)
	ticket.expiry.Stop()
	return ticket.serve, true
}

package sandbox

import (
	"context"
	"fmt"
)

// opLock is the operation lock of an object: a mutex whose Lock honours a context.
type opLock chan struct{}

func newOpLock() opLock { return make(opLock, 1) }

func (l opLock) lock(ctx context.Context, what string) error {
	select {
	case l <- struct{}{}:
		return nil
	default:
	}
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: waiting for the operation under way: %w", what, ctx.Err())
	}
}

func (l opLock) unlock() { <-l }

// creation is the making of an object, under way or done. Requests for the same object join it.
type creation struct {
	done chan struct{} // closed when err may be read
	err  error
}

func newCreation() *creation { return &creation{done: make(chan struct{})} }

func (c *creation) finish(err error) {
	c.err = err
	close(c.done)
}

// wait returns the creation's error, or ctx's if that ends first; the creation goes on.
func (c *creation) wait(ctx context.Context, stage func() string) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return fmt.Errorf("%s goes on, ask again: %w", stage(), ctx.Err())
	}
}

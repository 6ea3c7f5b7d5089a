package imagesvc

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
)

// spool is a nameless file that is read while it is still written: a layer is
// unpacked while it arrives, and waits here for the layers below it. It takes disk, not memory, and is
// gone with the process.
type spool struct {
	file *os.File

	mu   sync.Mutex
	more *sync.Cond // size or done changed
	size int64
	done bool
	err  error
}

func newSpool(dir string) (*spool, error) {
	f, err := os.CreateTemp(dir, "layer-")
	if err != nil {
		return nil, fmt.Errorf("file for a layer: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, joinClose(fmt.Errorf("file for a layer: %w", err), f.Close())
	}
	s := &spool{file: f}
	s.more = sync.NewCond(&s.mu)
	return s, nil
}

// Write appends. There is one writer.
func (s *spool) Write(p []byte) (int, error) {
	n, err := s.file.WriteAt(p, s.size)
	pulledBytes.Add(float64(n))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size += int64(n)
	s.more.Broadcast()
	return n, err
}

// finish says that all is there and verified, or why not. Readers see the end only after it.
func (s *spool) finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done, s.err = true, err
	s.more.Broadcast()
}

// Close frees the space. Nobody may read or write any more.
func (s *spool) Close() error { return s.file.Close() }

// reader reads from the beginning, waiting for the writer where it is ahead of it, until ctx ends.
func (s *spool) reader(ctx context.Context) io.Reader { return &spoolReader{from: s, ctx: ctx} }

type spoolReader struct {
	from   *spool
	ctx    context.Context
	offset int64
}

func (r *spoolReader) Read(p []byte) (int, error) {
	left, err := r.from.wait(r.ctx, r.offset)
	if err != nil {
		return 0, err
	}
	if int64(len(p)) > left {
		p = p[:left]
	}
	n, err := r.from.file.ReadAt(p, r.offset)
	r.offset += int64(n)
	return n, err
}

// wait returns how many bytes stand ready behind offset, more than none; io.EOF at the end.
func (s *spool) wait(ctx context.Context, offset int64) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ready := func() bool { return s.err != nil || s.done || offset < s.size || ctx.Err() != nil }
	if !ready() {
		stop := context.AfterFunc(ctx, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.more.Broadcast()
		})
		defer stop()
	}
	for !ready() {
		s.more.Wait()
	}
	switch {
	case s.err != nil:
		return 0, s.err
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case offset < s.size:
		return s.size - offset, nil
	}
	return 0, io.EOF
}

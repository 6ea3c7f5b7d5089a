package libct

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"

	"github.com/criserver/criserver/pkg/libct/pidfd"
	"github.com/criserver/criserver/pkg/libct/wire"
	"github.com/criserver/criserver/pkg/telemetry"
)

// Shim is the handle on the node's shim. It is safe for concurrent use.
type Shim struct {
	o      Options
	binary string // absolute path of the shim
	log    *logrus.Entry
	warm   *prewarmer

	cancel context.CancelFunc // ends the goroutine that looks after the shim
	looked sync.WaitGroup     // for it

	mu      sync.Mutex
	ready   chan struct{} // closed while calls may be made
	process *os.File      // pidfd of the shim
	spares  map[string]*spare
	writers map[string]map[*stdinWriter]struct{}
}

// Open connects to the running shim or starts one, and looks after it. A running
// shim of another build than o.Binary is upgraded in place.
func Open(ctx context.Context, o Options) (*Shim, error) {
	binary, err := filepath.Abs(o.Binary)
	if err != nil {
		return nil, err
	}
	if !filepath.IsAbs(o.State) {
		return nil, fmt.Errorf("state directory %q: must be an absolute path: %w", o.State, errdefs.ErrInvalidArgument)
	}
	if o.Log == nil {
		o.Log = logrus.NewEntry(logrus.StandardLogger())
	}
	s := &Shim{
		o: o, binary: binary, log: o.Log, warm: newPrewarmer(),
		ready:   make(chan struct{}),
		spares:  make(map[string]*spare),
		writers: make(map[string]map[*stdinWriter]struct{}),
	}
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("shim: %w", err)
	}
	if err := s.connect(ctx); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("shim: %w", err)
	}
	close(s.ready)
	life, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.looked.Go(func() { s.lookAfter(life) })
	return s, nil
}

// connect finds the living shim and collects spares from it, or starts another.
func (s *Shim) connect(ctx context.Context) error {
	hello, err := s.greet(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		if err := s.endUnreachable(); err != nil {
			return err
		}
		return s.launch(ctx)
	}
	if err := s.note(hello.Pid); err != nil {
		return err
	}
	if err := s.upgrade(ctx, hello.Build); err != nil {
		s.log.WithError(err).Error("the shim stays as it is")
	}
	return s.collectSpares(ctx)
}

// upgrade lets the shim execute another build in its place.
func (s *Shim) upgrade(ctx context.Context, running string) error {
	build, err := buildOf(s.binary)
	if err != nil {
		return err
	}
	if build == running {
		return nil
	}
	reply, _, err := s.exchange(ctx, &wire.Request{Method: wire.Upgrade, Path: s.binary})
	if err != nil {
		return fmt.Errorf("upgrade shim: %w", err)
	}
	s.log.WithFields(logrus.Fields{"from": running, "to": reply.Build}).Info("shim upgraded in place")
	return nil
}

// buildOf is what a shim made of this file calls its build.
func buildOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// greet asks the shim who it is.
func (s *Shim) greet(ctx context.Context) (wire.Reply, error) {
	reply, _, err := s.exchange(ctx, &wire.Request{Method: wire.Hello})
	return reply, err
}

// Pauses between attempts to get a shim again.
const (
	firstPause = time.Millisecond
	longPause  = 5 * time.Second
)

var (
	shimUp = telemetry.Metrics.NewGauge(prometheus.GaugeOpts{
		Name: "criserver_shim_up", Help: "1 while the shim answers, else 0.",
	})
	shimReplaced = telemetry.Metrics.NewCounter(prometheus.CounterOpts{
		Name: "criserver_shim_replaced_total", Help: "Shims that have died and were replaced.",
	})
)

// lookAfter listens to the shim until ctx ends, and replaces it when it dies.
func (s *Shim) lookAfter(ctx context.Context) {
	for {
		shimUp.Set(1)
		err := s.listen(ctx)
		if ctx.Err() != nil {
			return
		}
		shimUp.Set(0)
		s.log.WithError(err).Debug("the shim hung up")
		ready := make(chan struct{})
		s.mu.Lock()
		s.ready = ready
		s.mu.Unlock()
		replaced, err := s.regain(ctx)
		if err != nil {
			return // ctx has ended
		}
		close(ready)
		if !replaced {
			continue
		}
		shimReplaced.Inc()
		if s.o.OnReplace != nil {
			s.o.OnReplace()
		}
	}
}

// regain gets hold of the shim that hung up, or of another in its place.
func (s *Shim) regain(ctx context.Context) (replaced bool, err error) {
	for pause := time.Duration(firstPause); ; pause = min(2*pause, longPause) {
		s.mu.Lock()
		dead := s.process == nil || pidfd.Ended(s.process)
		s.mu.Unlock()
		if dead {
			err = s.launch(ctx)
		} else {
			_, err = s.greet(ctx)
		}
		if err == nil {
			return dead, nil
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		level := logrus.WarnLevel
		if !dead { // a shim that was killed hangs up a moment before it is seen to be dead
			level = logrus.DebugLevel
		}
		s.log.WithError(err).WithField("dead", dead).Log(level, "no shim yet")
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// listen is told of exits until the connection ends, which it always does with an error.
func (s *Shim) listen(ctx context.Context) error {
	conn, _, _, err := s.begin(ctx, &wire.Request{Method: wire.Watch})
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	for {
		var r wire.Reply
		files, err := conn.Recv(&r)
		wire.CloseFiles(files)
		if err != nil {
			return err
		}
		if r.Exit == nil {
			continue
		}
		s.dropSpare(r.Exited)
		if s.o.OnExit != nil {
			s.o.OnExit(r.Exited, *r.Exit)
		}
	}
}

// Close hangs up; the shim and its containers run on.
func (s *Shim) Close() error {
	s.cancel()
	s.looked.Wait()
	s.closeFiles()
	return nil
}

func (s *Shim) closeFiles() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, sp := range s.spares {
		sp.close()
		delete(s.spares, id)
	}
	wire.CloseFiles([]*os.File{s.process})
	s.process = nil
}

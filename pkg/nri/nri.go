// Package nri lets plugins have a say in the life of pods and containers: the
// Node Resource Interface, https://github.com/containerd/nri. A plugin connects to a
// socket, or is started from a directory; it hears of events and answers with
// changes, or with a refusal.
//
// The package stands between two others. nri/pkg/adaptation speaks to the
// plugins. Package sandbox declares, as Hooks, what it tells; Service implements
// that, and gives the sandbox what plugins want of containers other than
// the one that an event is about.
//
// # Without plugins
//
// An event that nobody hears costs a lock that is free and a counter that is zero.
//
// # One event at a time
//
// Plugins decide about shared resources, so they hear of one event at a time, in
// the order of their index. A plugin that does not answer within the protocol's
// two seconds is cut off, and the event goes on to the others; what waits its
// turn meanwhile waits no longer than that, or until its own context ends.
//
// # Who hears of what
//
// A plugin that joins gets a list of what there is (Synchronize) and from then
// on every event. No event is told while a list is being made and accepted, so
// none is missed. What changes in the very moment of joining may be both in the list
// and an event.
//
// # What cannot be
//
// Changes of the limits of created containers are those that the CRI has, too:
// others (pids, real time, classes) are passed over. A class of block I/O is
// refused, for nothing here defines classes.
package nri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/nri/pkg/adaptation"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/sirupsen/logrus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/sandbox"
)

// ErrServed says that another program serves plugins on the socket.
var ErrServed = errors.New("another program serves NRI plugins there")

// Sandboxes is what plugins need of the sandbox.
type Sandboxes interface {
	Hooked() (pods []sandbox.Pod, containers []sandbox.HookObject)
	SetResources(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error
	Evict(id, reason string) error
}

// Options configure New.
type Options struct {
	Socket    string // on which plugins connect
	PluginDir string // of programs INDEX-NAME, which Start starts; it need not be there
	ConfDir   string // of their configurations, INDEX-NAME.conf or NAME.conf
	Version   string // of ours, which plugins are told
	Host      spec.Host
	Devices   sandbox.Devices // for CDI
	Log       *logrus.Entry
}

// Service is the sandbox's Hooks. It is safe for concurrent use.
type Service struct {
	o          Options
	log        *logrus.Entry
	adaptation *adaptation.Adaptation
	sandboxes  Sandboxes // set by Start

	plugins atomic.Int32  // connected and in step
	turn    chan struct{} // holds a value while an event is told
	refused atomic.Value  // string: the plugin that last answered with an error
}

// New makes the service; nobody hears of anything before Start.
func New(o Options) (*Service, error) {
	s := &Service{o: o, log: o.Log, turn: make(chan struct{}, 1)}
	setLogger(o.Log)
	a, err := adaptation.New("criserver", o.Version, s.synchronize, s.unsolicited,
		adaptation.WithSocketPath(o.Socket),
		adaptation.WithPluginPath(o.PluginDir),
		adaptation.WithPluginConfigPath(o.ConfDir),
		adaptation.WithMetrics((*observer)(s)))
	if err != nil {
		return nil, fmt.Errorf("nri: %w", err)
	}
	s.adaptation = a
	return s, nil
}

// Start starts the plugins of the directory and serves those that connect. With ErrServed nothing was started.
func (s *Service) Start(sandboxes Sandboxes) error {
	s.sandboxes = sandboxes
	if c, err := net.DialTimeout("unix", s.o.Socket, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("nri.socket: %s: %w", s.o.Socket, ErrServed)
	}
	if err := s.adaptation.Start(); err != nil {
		s.adaptation.Stop()
		return fmt.Errorf("nri: %w", err)
	}
	return nil
}

// Close ends the plugins that Start started and takes no more. Connections of others end with the process.
func (s *Service) Close() error {
	s.adaptation.Stop()
	s.plugins.Store(0)
	return nil
}

// begin waits for the turn to tell of an event. Without an error end gives it back; it is nil if there is nobody to tell.
func (s *Service) begin(ctx context.Context) (end func(), err error) {
	joining := s.adaptation.BlockPluginSync() // after it, a plugin is either counted or will find the object in its list
	if s.plugins.Load() == 0 {
		joining.Unblock()
		return nil, nil
	}
	select {
	case s.turn <- struct{}{}:
	case <-ctx.Done():
		joining.Unblock()
		return nil, fmt.Errorf("waiting for NRI plugins: %w", ctx.Err())
	}
	s.refused.Store("")
	return func() { <-s.turn; joining.Unblock() }, nil
}

// named says in an error of a plugin whose it is. The turn is held, so that it is of the plugin that was asked last.
func (s *Service) named(event string, err error) error {
	if err == nil {
		return nil
	}
	who, _ := s.refused.Swap("").(string)
	if who == "" { // two plugins wanted different things: the error has their names
		return fmt.Errorf("NRI: %s: %w: %w", event, err, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("NRI plugin %s refused %s: %w", who, event, errgrpc.ToNative(err))
}

// observer learns from the adaptation's measurements what its interface does not tell.
type observer Service

// RecordPluginInvocation notes who answered with an error.
func (o *observer) RecordPluginInvocation(plugin, operation string, err error) {
	if err != nil && operation != "Synchronize" { // which happens beside the turns
		o.refused.Store(plugin)
	}
}

// UpdatePluginCount is called before an event can be told that a new plugin must hear.
func (o *observer) UpdatePluginCount(n int) { o.plugins.Store(int32(n)) }

// RecordPluginLatency does nothing.
func (o *observer) RecordPluginLatency(string, string, time.Duration) {}

// RecordPluginAdjustments does nothing.
func (o *observer) RecordPluginAdjustments(string, string, *adaptation.ContainerAdjustment, int, int) {
}

// setLogger gives the library's one logger its place, once: it is read without a lock.
func setLogger(log *logrus.Entry) { loggerOnce.Do(func() { nrilog.Set(logger{log}) }) }

var loggerOnce sync.Once

// logger passes on what the library logs; what it takes for information is for those who look for an error.
type logger struct{ log *logrus.Entry }

func (l logger) Debugf(_ context.Context, format string, args ...any) { l.log.Debugf(format, args...) }
func (l logger) Infof(_ context.Context, format string, args ...any)  { l.log.Debugf(format, args...) }
func (l logger) Warnf(_ context.Context, format string, args ...any)  { l.log.Warnf(format, args...) }
func (l logger) Errorf(_ context.Context, format string, args ...any) {
	for _, a := range args {
		if err, ok := a.(error); ok && errors.Is(err, adaptation.ErrWasmDisabled) {
			return // at build time, and on purpose
		}
	}
	l.log.Errorf(format, args...)
}

var _ sandbox.Hooks = (*Service)(nil)

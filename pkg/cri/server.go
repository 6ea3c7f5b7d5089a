// Package cri is the gRPC edge: it serves the Container Runtime Interface v1,
// RuntimeService and ImageService, over package sandbox and package imagesvc.
//
// Each RPC has a file of its own, named after it, and does three things: it checks
// the request, calls the heart, and translates what it gets. There is no state
// here. What all RPCs share stands in a few files more:
//
//	server.go        what the edge needs of the rest, and how it is set up
//	interceptors.go  limits, panics, the log line of each RPC
//	errors.go        the kinds of errors and their gRPC codes
//	check.go         checks of requests
//	filter.go        filters of lists
//	chunk.go         the Stream* twins of lists
//	metrics.go       the table of all metrics
//	pod.go, container.go, image.go   translation into CRI messages
//	info.go          the free-form JSON of verbose answers
//
// Rules are cited by the name of the CRI field or RPC whose comment in api.proto
// of k8s.io/cri-api states them.
package cri

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/cri/spec"
	"github.com/criserver/criserver/pkg/cri/streaming"
	"github.com/criserver/criserver/pkg/imagesvc"
	"github.com/criserver/criserver/pkg/sandbox"
	"github.com/criserver/criserver/pkg/stats"
)

// Sandboxes is what the edge needs of *sandbox.Manager; see there.
type Sandboxes interface {
	RunPod(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (string, error)
	UpdatePod(ctx context.Context, id string, overhead, resources *runtimeapi.LinuxContainerResources) error
	StopPod(ctx context.Context, id string) error
	RemovePod(ctx context.Context, id string) error
	Pod(id string) (sandbox.Pod, error)
	Pods() []sandbox.Pod
	DamagedNetworks() []string

	CreateContainer(ctx context.Context, pod string, cfg *runtimeapi.ContainerConfig) (string, error)
	StartContainer(ctx context.Context, id string) error
	StopContainer(ctx context.Context, id string, grace time.Duration) error
	RemoveContainer(ctx context.Context, id string) error
	UpdateContainer(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error
	Container(id string) (sandbox.Container, error)
	Containers() []sandbox.Container
	ReopenLog(ctx context.Context, id string) error
	Spec(id string) (*specs.Spec, error)
	VolumeUser(image digest.Digest) (container string)

	ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (sandbox.ExecResult, error)
	Exec(ctx context.Context, id string, cmd []string, s sandbox.Streams) (int32, error)
	Attach(ctx context.Context, id string, s sandbox.Streams) error
	PortForward(ctx context.Context, pod string, port int32, c io.ReadWriteCloser) error

	ContainerStats(ctx context.Context, id string) (*runtimeapi.ContainerStats, error)
	ContainersStats(ctx context.Context, keep func(sandbox.Container) bool) []*runtimeapi.ContainerStats
	PodStats(ctx context.Context, id string) (*runtimeapi.PodSandboxStats, error)
	PodsStats(ctx context.Context, keep func(sandbox.Pod) bool) []*runtimeapi.PodSandboxStats
	Readings(ctx context.Context) []*sandbox.PodReading
	FSUsage(ctx context.Context) (imagesvc.Usage, error)

	Subscribe(ctx context.Context) <-chan sandbox.Event
}

// Images is what the edge needs of *imagesvc.Service; see there.
type Images interface {
	Pull(ctx context.Context, ref string, a imagesvc.Auth) (imagesvc.Image, error)
	Image(refOrID string) (imagesvc.Image, error)
	Images() []imagesvc.Image
	Remove(ctx context.Context, refOrID string) error
	FSUsage(ctx context.Context) (imagesvc.Usage, error)
}

// Network is what the edge needs of *cni.Network; see there.
type Network interface {
	Status() error
	Config() json.RawMessage
}

// StreamingOptions are those of the server for exec, attach and port-forward; see streaming.Options.
type StreamingOptions struct {
	Address     string
	IdleTimeout time.Duration
	TLS         *tls.Config
}

// Options configure New.
type Options struct {
	Sandboxes     Sandboxes
	Images        Images
	Network       Network
	Streaming     StreamingOptions
	CgroupSystemd bool         // the cgroup driver that the kubelet is told to use
	Handlers      []string     // names of runtime handlers beside the default ""
	Host          spec.Host    // facts about this machine
	Kernel        stats.Kernel // which values its kernel has for metrics
	State, Root   string       // directories, for tools
	CNIConfDir    string       // the directory of CNI configurations, for tools
	Version       string       // of criserver
	Config        func() any   // the configuration in force, for tools: it must marshal to JSON and hold no secret
	Log           *logrus.Entry
}

// Server implements both services. It is safe for concurrent use.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer

	sandboxes Sandboxes
	images    Images
	network   Network
	streaming *streaming.Server
	options   Options
	handlers  []*runtimeapi.RuntimeHandler
	metrics   []metric // those that this machine has
	log       *logrus.Entry
	closing   chan struct{} // closed by Close
}

// New starts the streaming server and returns the edge. The caller serves it with Register and ends it with Close.
func New(o Options) (*Server, error) {
	s := &Server{
		sandboxes: o.Sandboxes, images: o.Images, network: o.Network,
		options: o, handlers: runtimeHandlers(o.Handlers, o.Host.MountSetattr), metrics: servedMetrics(o), log: o.Log, closing: make(chan struct{}),
	}
	var err error
	s.streaming, err = streaming.New(streaming.Options{
		Address: o.Streaming.Address, IdleTimeout: o.Streaming.IdleTimeout, TLS: o.Streaming.TLS,
		Log: o.Log.WithField("component", "streaming"),
	}, o.Sandboxes)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Register adds both services to a server, which should have been made with ServerOptions.
func (s *Server) Register(g *grpc.Server) {
	runtimeapi.RegisterRuntimeServiceServer(g, s)
	runtimeapi.RegisterImageServiceServer(g, s)
}

// Close ends event streams and all sessions of exec, attach and port-forward. It is called once.
func (s *Server) Close() error {
	close(s.closing)
	return s.streaming.Close()
}

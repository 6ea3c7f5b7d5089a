package cri

import (
	"context"
	"maps"
	"path"
	"runtime/debug"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/sirupsen/logrus"
	"go.opentelemetry.io/otel/propagation"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/telemetry"
)

const (
	// maxMessage is what the kubelet, crictl and every known client send and take at most (k8s.io/cri-client), in bytes.
	maxMessage = 16 << 20
	// maxHeader is of a request's HTTP/2 headers, in bytes.
	maxHeader = 64 << 10
	// maxLoggedID cuts what a request gives as an object's name.
	maxLoggedID = 128
)

// ServerOptions are what a gRPC server of the edge needs: limits, keepalive that forgives busy clients, and for each RPC
// the translation of its error, protection against panics and a line in the debug log. The line names the object, and
// nothing else of the request.
func ServerOptions(log *logrus.Entry, t *telemetry.Telemetry) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
			ctx, done := begin(ctx, t, info.FullMethod)
			err = done(observe(log, info.FullMethod, req, func() error {
				resp, err = handle(ctx, req)
				return err
			}))
			return resp, err
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			ctx, done := begin(stream.Context(), t, info.FullMethod)
			return done(observe(log, info.FullMethod, nil, func() error { return handle(srv, serverStream{stream, ctx}) }))
		}),
	}
}

var rpcSeconds = telemetry.Metrics.NewHistogramVec(prometheus.HistogramOpts{
	Name: "criserver_rpc_duration_seconds", Help: "How long RPCs took, by their gRPC code.", Buckets: telemetry.Seconds,
}, []string{"rpc", "code"})

// begin begins the operation that an RPC is. It is part of the caller's trace, if there is one (W3C trace context).
func begin(ctx context.Context, t *telemetry.Telemetry, method string) (context.Context, func(error) error) {
	md, _ := metadata.FromIncomingContext(ctx)
	name, start := path.Base(method), time.Now()
	ctx, done := t.Operation(propagation.TraceContext{}.Extract(ctx, carrier(md)), name)
	return ctx, func(err error) error {
		rpcSeconds.WithLabelValues(name, status.Code(err).String()).Observe(time.Since(start).Seconds())
		done(err)
		return err
	}
}

// carrier is the metadata of a request, of which the trace context is read.
type carrier metadata.MD

func (c carrier) Get(key string) string {
	if v := metadata.MD(c).Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}
func (c carrier) Set(key, value string) { metadata.MD(c).Set(key, value) }
func (c carrier) Keys() []string        { return slices.Collect(maps.Keys(c)) }

// serverStream is a stream whose context has an operation.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s serverStream) Context() context.Context { return s.ctx }

// observe runs an RPC and returns its error as a gRPC status.
func observe(log *logrus.Entry, method string, req any, call func() error) (err error) {
	begin := time.Now()
	method = path.Base(method)
	defer func() {
		if p := recover(); p != nil {
			log.WithFields(logrus.Fields{"rpc": method, "object": objectID(req)}).Errorf("panic: %v\n%s", p, debug.Stack())
			err = status.Errorf(codes.Internal, "%s: internal error: %v; the log of criserver has its stack", method, p)
		}
	}()
	err = toStatus(call())
	if log.Logger.IsLevelEnabled(logrus.DebugLevel) {
		entry := log.WithFields(logrus.Fields{
			"rpc": method, "object": objectID(req), "code": status.Code(err).String(), "took": time.Since(begin).Round(time.Microsecond).String(),
		})
		if err != nil {
			entry = entry.WithField("error", status.Convert(err).Message())
		}
		entry.Debug("rpc")
	}
	return err
}

// objectID names the pod, container or image that a request is about.
func objectID(req any) string {
	var id string
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		m := r.GetConfig().GetMetadata()
		id = m.GetNamespace() + "/" + m.GetName()
	case *runtimeapi.CreateContainerRequest:
		id = r.GetPodSandboxId() + "/" + r.GetConfig().GetMetadata().GetName()
	case interface{ GetContainerId() string }:
		id = r.GetContainerId()
	case interface{ GetPodSandboxId() string }:
		id = r.GetPodSandboxId()
	case interface{ GetImage() *runtimeapi.ImageSpec }:
		id = r.GetImage().GetImage()
	}
	return id[:min(len(id), maxLoggedID)]
}

package cri

import (
	"context"
	"path"
	"runtime/debug"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
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
func ServerOptions(log *logrus.Entry) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxSendMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
			err = observe(log, info.FullMethod, req, func() error {
				resp, err = handle(ctx, req)
				return err
			})
			return resp, err
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
			return observe(log, info.FullMethod, nil, func() error { return handle(srv, stream) })
		}),
	}
}

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

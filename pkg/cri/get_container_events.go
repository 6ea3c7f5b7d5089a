package cri

import (
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

// GetContainerEvents sends what happens to pods and containers, each event with what the pod and its containers are now,
// until the client leaves or the server closes. The headers of the answer are sent once nothing is missed any more.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, stream grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	ctx := stream.Context()
	events := s.sandboxes.Subscribe(ctx)
	if err := stream.SendHeader(metadata.MD{}); err != nil {
		return err
	}
	for {
		select {
		case event, ok := <-events:
			if !ok {
				return s.eventsEnded(ctx.Err())
			}
			if err := stream.Send(s.event(event)); err != nil {
				return err
			}
		case <-s.closing:
			return s.eventsEnded(nil)
		}
	}
}

// eventsEnded tells a client why no more events come. Its own leaving is the first reason.
func (s *Server) eventsEnded(left error) error {
	if left != nil {
		return left
	}
	select {
	case <-s.closing:
		return fmt.Errorf("the runtime is shutting down: connect again and list anew: %w", errdefs.ErrUnavailable)
	default:
		return fmt.Errorf("events came faster than they were read, and some are lost: list anew and connect again: %w", errdefs.ErrResourceExhausted)
	}
}

// event has no pod status once the pod is gone.
func (s *Server) event(e sandbox.Event) *runtimeapi.ContainerEventResponse {
	resp := &runtimeapi.ContainerEventResponse{ContainerId: e.Container, ContainerEventType: e.Type, CreatedAt: nanos(e.At)}
	if pod, err := s.sandboxes.Pod(e.Pod); err == nil {
		resp.PodSandboxStatus = podStatus(pod)
		resp.ContainersStatuses = s.containerStatuses(pod.ID)
	}
	return resp
}

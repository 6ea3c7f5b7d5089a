package cri

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/sandbox"
)

// nanos is a time as CRI has it: nanoseconds since 1970, 0 for what has not happened.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

// podState: a pod is READY only as long as containers may be made in it.
func podState(s sandbox.PodState) runtimeapi.PodSandboxState {
	if s == sandbox.PodReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func podItem(p sandbox.Pod) *runtimeapi.PodSandbox {
	return &runtimeapi.PodSandbox{
		Id:             p.ID,
		Metadata:       p.Config.GetMetadata(),
		State:          podState(p.State),
		CreatedAt:      nanos(p.CreatedAt),
		Labels:         p.Config.GetLabels(),
		Annotations:    p.Config.GetAnnotations(),
		RuntimeHandler: p.Handler,
	}
}

func podStatus(p sandbox.Pod) *runtimeapi.PodSandboxStatus {
	// The kubelet takes a nil network for a fault of the runtime, and an empty address for the host's.
	network := &runtimeapi.PodSandboxNetworkStatus{}
	for i, ip := range p.IPs {
		if i == 0 {
			network.Ip = ip.String()
		} else {
			network.AdditionalIps = append(network.AdditionalIps, &runtimeapi.PodIP{Ip: ip.String()})
		}
	}
	namespaces := p.Config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if namespaces == nil {
		namespaces = &runtimeapi.NamespaceOption{}
	}
	return &runtimeapi.PodSandboxStatus{
		Id:             p.ID,
		Metadata:       p.Config.GetMetadata(),
		State:          podState(p.State),
		CreatedAt:      nanos(p.CreatedAt),
		Network:        network,
		Linux:          &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: namespaces}},
		Labels:         p.Config.GetLabels(),
		Annotations:    p.Config.GetAnnotations(),
		RuntimeHandler: p.Handler,
	}
}

package cri

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// method is a method of a client of the edge.
type method[Req, Resp proto.Message] = func(context.Context, Req, ...grpc.CallOption) (Resp, error)

func run(r *runtimeapi.RunPodSandboxRequest) request {
	return rpc("RunPodSandbox", func(e *edge) method[*runtimeapi.RunPodSandboxRequest, *runtimeapi.RunPodSandboxResponse] {
		return e.runtime.RunPodSandbox
	},
		r)
}

func stopPod(id string) request {
	return rpc("StopPodSandbox", func(e *edge) method[*runtimeapi.StopPodSandboxRequest, *runtimeapi.StopPodSandboxResponse] {
		return e.runtime.StopPodSandbox
	},
		&runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
}

func removePod(id string) request {
	return rpc("RemovePodSandbox", func(e *edge) method[*runtimeapi.RemovePodSandboxRequest, *runtimeapi.RemovePodSandboxResponse] {
		return e.runtime.RemovePodSandbox
	},
		&runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
}

func podStatusOf(id string) request {
	return rpc("PodSandboxStatus", func(e *edge) method[*runtimeapi.PodSandboxStatusRequest, *runtimeapi.PodSandboxStatusResponse] {
		return e.runtime.PodSandboxStatus
	},
		&runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
}

func podStats(id string) request {
	return rpc("PodSandboxStats", func(e *edge) method[*runtimeapi.PodSandboxStatsRequest, *runtimeapi.PodSandboxStatsResponse] {
		return e.runtime.PodSandboxStats
	},
		&runtimeapi.PodSandboxStatsRequest{PodSandboxId: id})
}

func start(id string) request {
	return rpc("StartContainer", func(e *edge) method[*runtimeapi.StartContainerRequest, *runtimeapi.StartContainerResponse] {
		return e.runtime.StartContainer
	},
		&runtimeapi.StartContainerRequest{ContainerId: id})
}

func remove(id string) request {
	return rpc("RemoveContainer", func(e *edge) method[*runtimeapi.RemoveContainerRequest, *runtimeapi.RemoveContainerResponse] {
		return e.runtime.RemoveContainer
	},
		&runtimeapi.RemoveContainerRequest{ContainerId: id})
}

func containerStatusOf(id string) request {
	return rpc("ContainerStatus", func(e *edge) method[*runtimeapi.ContainerStatusRequest, *runtimeapi.ContainerStatusResponse] {
		return e.runtime.ContainerStatus
	},
		&runtimeapi.ContainerStatusRequest{ContainerId: id})
}

func reopen(id string) request {
	return rpc("ReopenContainerLog", func(e *edge) method[*runtimeapi.ReopenContainerLogRequest, *runtimeapi.ReopenContainerLogResponse] {
		return e.runtime.ReopenContainerLog
	},
		&runtimeapi.ReopenContainerLogRequest{ContainerId: id})
}

func statsOf(id string) request {
	return rpc("ContainerStats", func(e *edge) method[*runtimeapi.ContainerStatsRequest, *runtimeapi.ContainerStatsResponse] {
		return e.runtime.ContainerStats
	},
		&runtimeapi.ContainerStatsRequest{ContainerId: id})
}

func create(pod string, c *runtimeapi.ContainerConfig) request {
	return rpc("CreateContainer", func(e *edge) method[*runtimeapi.CreateContainerRequest, *runtimeapi.CreateContainerResponse] {
		return e.runtime.CreateContainer
	},
		&runtimeapi.CreateContainerRequest{PodSandboxId: pod, Config: c})
}

func stop(id string, timeout int64) request {
	return rpc("StopContainer", func(e *edge) method[*runtimeapi.StopContainerRequest, *runtimeapi.StopContainerResponse] {
		return e.runtime.StopContainer
	},
		&runtimeapi.StopContainerRequest{ContainerId: id, Timeout: timeout})
}

func update(id string, l *runtimeapi.LinuxContainerResources) request {
	return rpc("UpdateContainerResources", func(e *edge) method[*runtimeapi.UpdateContainerResourcesRequest, *runtimeapi.UpdateContainerResourcesResponse] {
		return e.runtime.UpdateContainerResources
	},
		&runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: l})
}

func updatePod(id string, overhead, resources *runtimeapi.LinuxContainerResources) request {
	return rpc("UpdatePodSandboxResources", func(e *edge) method[*runtimeapi.UpdatePodSandboxResourcesRequest, *runtimeapi.UpdatePodSandboxResourcesResponse] {
		return e.runtime.UpdatePodSandboxResources
	},
		&runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: id, Overhead: overhead, Resources: resources})
}

func execSync(id string, timeout int64, cmd ...string) request {
	return rpc("ExecSync", func(e *edge) method[*runtimeapi.ExecSyncRequest, *runtimeapi.ExecSyncResponse] {
		return e.runtime.ExecSync
	},
		&runtimeapi.ExecSyncRequest{ContainerId: id, Timeout: timeout, Cmd: cmd})
}

func exec(r *runtimeapi.ExecRequest) request {
	return rpc("Exec", func(e *edge) method[*runtimeapi.ExecRequest, *runtimeapi.ExecResponse] { return e.runtime.Exec },
		r)
}

func attach(r *runtimeapi.AttachRequest) request {
	return rpc("Attach", func(e *edge) method[*runtimeapi.AttachRequest, *runtimeapi.AttachResponse] { return e.runtime.Attach },
		r)
}

func forward(pod string, ports ...int32) request {
	return rpc("PortForward", func(e *edge) method[*runtimeapi.PortForwardRequest, *runtimeapi.PortForwardResponse] {
		return e.runtime.PortForward
	},
		&runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: ports})
}

func imageStatus(i *runtimeapi.ImageSpec) request {
	return rpc("ImageStatus", func(e *edge) method[*runtimeapi.ImageStatusRequest, *runtimeapi.ImageStatusResponse] {
		return e.image.ImageStatus
	},
		&runtimeapi.ImageStatusRequest{Image: i})
}

func removeImage(i *runtimeapi.ImageSpec) request {
	return rpc("RemoveImage", func(e *edge) method[*runtimeapi.RemoveImageRequest, *runtimeapi.RemoveImageResponse] {
		return e.image.RemoveImage
	},
		&runtimeapi.RemoveImageRequest{Image: i})
}

func pull(i *runtimeapi.ImageSpec, a *runtimeapi.AuthConfig) request {
	return rpc("PullImage", func(e *edge) method[*runtimeapi.PullImageRequest, *runtimeapi.PullImageResponse] {
		return e.image.PullImage
	},
		&runtimeapi.PullImageRequest{Image: i, Auth: a})
}

// request is a call of an RPC.
type request struct {
	name string
	call func(context.Context, *edge) (proto.Message, error)
}

func rpc[Req, Resp proto.Message](name string, of func(*edge) method[Req, Resp], req Req) request {
	return request{name, func(ctx context.Context, e *edge) (proto.Message, error) { return of(e)(ctx, req) }}
}

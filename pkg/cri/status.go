package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sandboxImage answers kubeadm, which compares it with the pause image that it would pull. There is none here: what a
// pod shares is held by the kernel.
const sandboxImage = "none"

// Status is asked for every few seconds; it reads memory only.
func (s *Server) Status(_ context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	network := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	networkErr := s.network.Status()
	if networkErr != nil {
		network.Status, network.Reason, network.Message = false, "NetworkPluginNotReady", networkErr.Error()
	}
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			{Type: runtimeapi.RuntimeReady, Status: true},
			network,
			podNetworks(s.sandboxes.DamagedNetworks()),
		}},
		RuntimeHandlers: s.handlers,
		Features: &runtimeapi.RuntimeFeatures{
			SupplementalGroupsPolicy:  true,
			UserNamespacesHostNetwork: true,
			MountOptions:              true,
		},
	}
	if r.GetVerbose() {
		var err error
		if resp.Info, err = s.statusInfo(networkErr); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// podNetworksReady is a condition of our own, for people and tools: the kubelet acts on the two above only, and so goes
// on to run pods on a node where the network of one is damaged.
const podNetworksReady = "PodNetworksReady"

// podNetworks is the condition for the pods whose network is damaged.
func podNetworks(damaged []string) *runtimeapi.RuntimeCondition {
	if len(damaged) == 0 {
		return &runtimeapi.RuntimeCondition{Type: podNetworksReady, Status: true}
	}
	const named = 10
	names := strings.Join(damaged[:min(len(damaged), named)], ", ")
	if len(damaged) > named {
		names += ", ..."
	}
	return &runtimeapi.RuntimeCondition{Type: podNetworksReady, Reason: "PodNetworkDamaged",
		Message: fmt.Sprintf("of %d pods: %s; the log says how", len(damaged), names)}
}

// statusInfo has the keys that tools look for: config.sandboxImage (kubeadm), config.stateDir (critest), cniconfig and
// lastCNILoadStatus (crictl info).
func (s *Server) statusInfo(networkErr error) (map[string]string, error) {
	load := "OK"
	if networkErr != nil {
		load = networkErr.Error()
	}
	config, err := json.Marshal(map[string]any{
		"sandboxImage":            sandboxImage,
		"rootDir":                 s.options.Root,
		"stateDir":                s.options.State,
		"networkPluginConfDir":    s.options.CNIConfDir,
		"maxContainerLogLineSize": maxLogLine,
		"systemdCgroup":           s.options.CgroupSystemd,
		"host":                    s.options.Host,
		"criserver":               s.options.Config(),
	})
	if err != nil {
		return nil, fmt.Errorf("configuration as JSON: %w", err)
	}
	quoted, err := json.Marshal(load)
	if err != nil {
		return nil, fmt.Errorf("network status as JSON: %w", err)
	}
	info := map[string]string{
		"config":            string(config),
		"golang":            `"` + runtime.Version() + `"`,
		"lastCNILoadStatus": string(quoted),
	}
	if cni := s.network.Config(); len(cni) > 0 {
		info["cniconfig"] = string(cni)
	}
	return info, nil
}

// maxLogLine is where longer lines are split in the log, in bytes, as the kubelet's reader expects it.
const maxLogLine = 16 << 10

// runtimeHandlers are the default handler and the named ones, with what this kernel lets them do. All run containers in
// the same way.
func runtimeHandlers(names []string, mountSetattr bool) []*runtimeapi.RuntimeHandler {
	userNamespaces := unix.Access("/proc/self/ns/user", unix.F_OK) == nil
	features := &runtimeapi.RuntimeHandlerFeatures{
		RecursiveReadOnlyMounts: mountSetattr,
		UserNamespaces:          mountSetattr && userNamespaces,
	}
	handlers := []*runtimeapi.RuntimeHandler{{Name: "", Features: features}}
	for _, name := range names {
		handlers = append(handlers, &runtimeapi.RuntimeHandler{Name: name, Features: features})
	}
	return handlers
}

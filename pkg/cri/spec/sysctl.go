package spec

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const fieldSysctls = "linux.sysctls"

// PodSysctls gives what to write in the namespaces of a new pod: path below /proc/sys ("net/ipv4/ip_forward") → value.
// These are those of the request, and with Defaults.UnprivilegedPorts two that allow any user of a pod with its own
// network to bind low ports and to ping (the latter not with a user namespace, whose group IDs the range does not fit).
//
// A sysctl of a namespace that the pod shares with the host, and one that has no namespace, is an error. Names may
// have either form of sysctl(8): "net.ipv4.conf.eth0/1.forwarding" and "net/ipv4/conf/eth0.1/forwarding" mean the same.
func PodSysctls(cfg *runtimeapi.PodSandboxConfig, d Defaults) (map[string]string, error) {
	out := make(map[string]string, len(cfg.GetLinux().GetSysctls())+2)
	if d.UnprivilegedPorts && !HostNetwork(cfg) {
		out["net/ipv4/ip_unprivileged_port_start"] = "0"
		if uids, _ := Mappings(cfg); uids == nil {
			out["net/ipv4/ping_group_range"] = "0 2147483647"
		}
	}
	if err := checkCount(fieldSysctls, len(cfg.GetLinux().GetSysctls())); err != nil {
		return nil, err
	}
	for name, value := range cfg.GetLinux().GetSysctls() {
		path, err := sysctlPath(name)
		if err != nil {
			return nil, err
		}
		if err := checkSysctl(cfg, name, path, value); err != nil {
			return nil, err
		}
		out[path] = value
	}
	return out, nil
}

const wordChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"

// sysctlPath turns a name into a path below /proc/sys. The first separator says which form it has; the other character
// is then part of a component, as only names of network interfaces have it.
func sysctlPath(name string) (string, error) {
	path := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		path = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	parts := strings.Split(path, "/")
	ok := len(name) <= maxName && len(parts) > 1
	for i, p := range parts {
		allowed := wordChars
		if i == 3 && len(parts) > 4 && parts[0] == "net" && (parts[2] == "conf" || parts[2] == "neigh") {
			allowed += "."
		}
		ok = ok && strings.Trim(p, ".") != "" && strings.Trim(p, allowed) == ""
	}
	if !ok {
		return "", invalid(fieldSysctls, "%s is no name of a sysctl", show(name))
	}
	return path, nil
}

// checkSysctl wants a sysctl of a namespace that is the pod's own.
func checkSysctl(cfg *runtimeapi.PodSandboxConfig, name, path, value string) error {
	switch {
	case strings.HasPrefix(path, "net/"):
		if HostNetwork(cfg) {
			return invalid(fieldSysctls, "%s cannot be set in a pod with the network of the host", show(name))
		}
	case ipcSysctl(path):
		if HostIPC(cfg) {
			return invalid(fieldSysctls, "%s cannot be set in a pod with the IPC namespace of the host", show(name))
		}
	default:
		return invalid(fieldSysctls, "%s is not separate for each pod; only net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* are", show(name))
	}
	if len(value) > 1024 || strings.Trim(value, wordChars+".,:/ \t") != "" {
		return invalid(fieldSysctls, "the value of %s has characters that no sysctl has, or is too long", show(name))
	}
	return nil
}

func ipcSysctl(path string) bool {
	if strings.HasPrefix(path, "fs/mqueue/") {
		return true
	}
	name, ok := strings.CutPrefix(path, "kernel/")
	return ok && !strings.Contains(name, "/") && (strings.HasPrefix(name, "shm") || strings.HasPrefix(name, "msg") || name == "sem")
}

package spec

import (
	"math"
	"net/netip"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckPod refuses a pod configuration that cannot be honoured, before anything is made for it. What depends on the
// cgroup driver is judged by CgroupsPath. CheckContainer does the same for a container. Both are part of what Build and
// the sandbox rely on.
func CheckPod(cfg *runtimeapi.PodSandboxConfig) error {
	if cfg == nil {
		return invalid("config", "is missing")
	}
	for _, step := range []func(*runtimeapi.PodSandboxConfig) error{
		checkPodMetadata, checkHostname, checkDNS, checkPorts, checkPodSecurity,
	} {
		if err := step(cfg); err != nil {
			return err
		}
	}
	if err := checkCgroupParent(cfg.GetLinux().GetCgroupParent()); err != nil {
		return err
	}
	if _, err := PodSysctls(cfg, Defaults{}); err != nil {
		return err
	}
	if dir := cfg.GetLogDirectory(); dir != "" {
		return checkAbs("log_directory", dir)
	}
	return nil
}

func checkPodMetadata(cfg *runtimeapi.PodSandboxConfig) error {
	m := cfg.GetMetadata()
	for _, f := range []struct{ field, value string }{
		{"metadata.name", m.GetName()}, {"metadata.namespace", m.GetNamespace()}, {"metadata.uid", m.GetUid()},
	} {
		if f.value == "" {
			return invalid(f.field, "is missing")
		}
		if err := checkText(f.field, f.value, maxName); err != nil {
			return err
		}
	}
	if err := checkMap("labels", cfg.GetLabels()); err != nil {
		return err
	}
	return checkMap("annotations", cfg.GetAnnotations())
}

// maxHostname is __NEW_UTS_LEN of the kernel, in bytes.
const maxHostname = 64

// checkHostname wants labels of RFC 1123 and, since the UTS namespace is then the host's, none with the host's network.
func checkHostname(cfg *runtimeapi.PodSandboxConfig) error {
	name := cfg.GetHostname()
	if name == "" {
		return nil
	}
	if HostNetwork(cfg) {
		return invalid("hostname", "cannot be given to a pod with the network of the host")
	}
	if len(name) > maxHostname {
		return invalid("hostname", "%d bytes long; at most %d are possible", len(name), maxHostname)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
			return invalid("hostname", "%s is no host name (RFC 1123)", show(name))
		}
	}
	return nil
}

// checkDNS refuses what would not be one word of resolv.conf(5).
func checkDNS(cfg *runtimeapi.PodSandboxConfig) error {
	d := cfg.GetDnsConfig()
	for _, list := range []struct {
		field string
		words []string
	}{{"dns_config.servers", d.GetServers()}, {"dns_config.searches", d.GetSearches()}, {"dns_config.options", d.GetOptions()}} {
		if err := checkCount(list.field, len(list.words)); err != nil {
			return err
		}
		for i, w := range list.words {
			if len(strings.Fields(w)) != 1 || strings.TrimSpace(w) != w {
				return invalid(item(list.field, i), "%s is not one word", show(w))
			}
			if err := checkText(item(list.field, i), w, maxName+1); err != nil {
				return err
			}
		}
	}
	for i, s := range d.GetServers() {
		if _, err := netip.ParseAddr(s); err != nil {
			return invalid(item("dns_config.servers", i), "%s is no IP address", show(s))
		}
	}
	return nil
}

// checkPorts accepts port mappings; host_port 0 means none. With the host's network they have no effect.
func checkPorts(cfg *runtimeapi.PodSandboxConfig) error {
	type key struct {
		addr     netip.Addr
		protocol runtimeapi.Protocol
		port     int32
	}
	seen := map[key]int{}
	for i, p := range cfg.GetPortMappings() {
		field := item("port_mappings", i)
		if _, known := runtimeapi.Protocol_name[int32(p.GetProtocol())]; !known {
			return invalid(field+".protocol", "unknown protocol %d", p.GetProtocol())
		}
		if p.GetContainerPort() < 1 || p.GetContainerPort() > math.MaxUint16 {
			return invalid(field+".container_port", "%d is not within 1 and 65535", p.GetContainerPort())
		}
		if p.GetHostPort() < 0 || p.GetHostPort() > math.MaxUint16 {
			return invalid(field+".host_port", "%d is not within 0 and 65535", p.GetHostPort())
		}
		var addr netip.Addr
		if p.GetHostIp() != "" {
			var err error
			if addr, err = netip.ParseAddr(p.GetHostIp()); err != nil || addr.Zone() != "" {
				return invalid(field+".host_ip", "%s is no IP address", show(p.GetHostIp()))
			}
		}
		if p.GetHostPort() == 0 || HostNetwork(cfg) {
			continue
		}
		k := key{addr, p.GetProtocol(), p.GetHostPort()}
		if j, ok := seen[k]; ok {
			return invalid(field+".host_port", "%d is that of port_mappings[%d] too", p.GetHostPort(), j)
		}
		seen[k] = i
	}
	return nil
}

// checkPodSecurity judges the security context of the pod.
func checkPodSecurity(cfg *runtimeapi.PodSandboxConfig) error {
	sc := cfg.GetLinux().GetSecurityContext()
	if err := checkPodNamespaces(sc.GetNamespaceOptions()); err != nil {
		return err
	}
	if sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil {
		return invalid("linux.security_context.run_as_group", "needs run_as_user")
	}
	if err := checkIDs(sc.GetRunAsUser(), sc.GetRunAsGroup(), sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy()); err != nil {
		return err
	}
	if err := checkSELinux(sc.GetSelinuxOptions()); err != nil {
		return err
	}
	if _, err := parseProfile(fieldAppArmor, sc.GetApparmor(), ""); err != nil {
		return err
	}
	_, err := parseSeccomp(sc.GetSeccomp(), sc.GetSeccompProfilePath())
	return err
}

// checkIDs wants IDs that Kubernetes and 32-bit programs can hold.
func checkIDs(user, group *runtimeapi.Int64Value, groups []int64, policy runtimeapi.SupplementalGroupsPolicy) error {
	const sc = "linux.security_context."
	bad := func(field string, id int64) error {
		if id < 0 || id > math.MaxInt32 {
			return invalid(sc+field, "%d is not within 0 and %d", id, math.MaxInt32)
		}
		return nil
	}
	if err := bad("run_as_user", user.GetValue()); err != nil {
		return err
	}
	if err := bad("run_as_group", group.GetValue()); err != nil {
		return err
	}
	for i, g := range groups {
		if err := bad(item("supplemental_groups", i), g); err != nil {
			return err
		}
	}
	if _, known := runtimeapi.SupplementalGroupsPolicy_name[int32(policy)]; !known {
		return invalid(sc+"supplemental_groups_policy", "unknown value %d", policy)
	}
	return nil
}

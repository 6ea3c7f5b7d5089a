package spec

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// decided are the fields of each message that are honoured, refused, or known to have no effect: whoever raises the
// version of the CRI is told by the test of each new field, and decides.
//
// Without effect, by their nature, are:
//
//	config.windows sandbox_config.windows                   this is no Windows
//	config.image.annotations config.image.image_ref         what is used is the image, which is here already
//	config.image.user_specified_image                       for people
//	mount.image.annotations mount.image.image_ref mount.image.user_specified_image
//	sandbox_config.linux.overhead                           the kubelet limits the pod's cgroup itself; told by the status
//	sandbox_config.linux.resources
//	sandbox_config.linux.security_context.readonly_rootfs   a pod's init has an empty root that is read-only anyway
//	sandbox_config.linux.security_context.supplemental_groups_policy   and no image whose groups could be merged
//	sandbox_config.linux.security_context.apparmor
var decided = map[string]string{
	"runtime.v1.ContainerConfig": "metadata image command args working_dir envs mounts devices labels annotations log_path stdin stdin_once tty linux " +
		"windows CDI_devices stop_signal",
	"runtime.v1.PodSandboxConfig":      "metadata hostname log_directory dns_config port_mappings labels annotations linux windows",
	"runtime.v1.LinuxPodSandboxConfig": "cgroup_parent security_context sysctls overhead resources",
	"runtime.v1.LinuxSandboxSecurityContext": "namespace_options selinux_options run_as_user run_as_group readonly_rootfs supplemental_groups " +
		"supplemental_groups_policy privileged seccomp apparmor seccomp_profile_path",
	"runtime.v1.LinuxContainerConfig": "resources security_context",
	"runtime.v1.LinuxContainerSecurityContext": "capabilities privileged namespace_options selinux_options run_as_user run_as_group run_as_username " +
		"readonly_rootfs supplemental_groups supplemental_groups_policy no_new_privs masked_paths readonly_paths seccomp apparmor apparmor_profile " +
		"seccomp_profile_path",
	"runtime.v1.LinuxContainerResources": "cpu_period cpu_quota cpu_shares memory_limit_in_bytes oom_score_adj cpuset_cpus cpuset_mems hugepage_limits " +
		"unified memory_swap_limit_in_bytes",
	"runtime.v1.Mount": "container_path host_path readonly selinux_relabel propagation uidMappings gidMappings recursive_read_only image image_sub_path " +
		"mount_options",
	"runtime.v1.ImageSpec":          "image annotations user_specified_image runtime_handler image_ref",
	"runtime.v1.Device":             "container_path host_path permissions",
	"runtime.v1.NamespaceOption":    "network pid ipc target_id userns_options",
	"runtime.v1.UserNamespace":      "mode uids gids",
	"runtime.v1.IDMapping":          "host_id container_id length",
	"runtime.v1.Capability":         "add_capabilities drop_capabilities add_ambient_capabilities",
	"runtime.v1.SecurityProfile":    "profile_type localhost_ref",
	"runtime.v1.SELinuxOption":      "user role type level",
	"runtime.v1.HugepageLimit":      "page_size limit",
	"runtime.v1.PortMapping":        "protocol container_port host_port host_ip",
	"runtime.v1.DNSConfig":          "servers searches options",
	"runtime.v1.KeyValue":           "key value",
	"runtime.v1.CDIDevice":          "name",
	"runtime.v1.Int64Value":         "value",
	"runtime.v1.ContainerMetadata":  "name attempt",
	"runtime.v1.PodSandboxMetadata": "name uid namespace attempt",
}

func TestEveryFieldIsDecided(t *testing.T) {
	seen := map[protoreflect.FullName]bool{}
	var visit func(m protoreflect.MessageDescriptor)
	visit = func(m protoreflect.MessageDescriptor) {
		if seen[m.FullName()] || strings.Contains(string(m.Name()), "Windows") {
			return
		}
		seen[m.FullName()] = true
		known := strings.Fields(decided[string(m.FullName())])
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			if !slices.Contains(known, string(f.Name())) {
				t.Errorf("%s.%s: nobody has decided whether it is honoured, refused or without effect", m.FullName(), f.Name())
			}
			known = slices.DeleteFunc(known, func(s string) bool { return s == string(f.Name()) })
			if !f.IsMap() && f.Kind() == protoreflect.MessageKind {
				visit(f.Message())
			}
		}
		if len(known) > 0 {
			t.Errorf("%s has no %q any more", m.FullName(), known)
		}
	}
	visit((&runtimeapi.ContainerConfig{}).ProtoReflect().Descriptor())
	visit((&runtimeapi.PodSandboxConfig{}).ProtoReflect().Descriptor())
}

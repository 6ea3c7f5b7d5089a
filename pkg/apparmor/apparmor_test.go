package apparmor

import (
	"bytes"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// Permissions of the parser's rules.
const (
	read  = 0x4
	write = 0x2
)

// denied has the parser compile the profile, without a kernel, and returns what it denies by path.
func denied(t *testing.T) func(path string, permission uint64) bool {
	t.Helper()
	parser := exec.CommandContext(t.Context(), "apparmor_parser", "--skip-kernel-load", "--skip-cache", "--dump=rule-exprs")
	parser.Stdin = bytes.NewReader(defaultProfile)
	out, err := parser.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	type rule struct {
		path        *regexp.Regexp
		permissions uint64
	}
	var rules []rule
	for _, m := range regexp.MustCompile(`(?m)^rule: (/\S+)  ->  .* deny \(0x([0-9a-f]+)/`).FindAllStringSubmatch(string(out), -1) {
		permissions, err := strconv.ParseUint(m[2], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, rule{regexp.MustCompile("^(?:" + m[1] + ")$"), permissions})
	}
	if len(rules) < 5 {
		t.Fatalf("%d rules in %s", len(rules), out)
	}
	return func(path string, permission uint64) bool {
		for _, r := range rules {
			if r.permissions&permission != 0 && r.path.MatchString(path) {
				return true
			}
		}
		return false
	}
}

// The profile is one, and denies the files of the kernel that are not the container's, and no others.
func TestDefaultProfile(t *testing.T) {
	if !bytes.Contains(defaultProfile, []byte("\nprofile "+Default+" ")) {
		t.Errorf("the profile is not called %s", Default)
	}
	denies := denied(t)
	for _, tc := range []struct {
		permission uint64
		paths      string
		want       bool
	}{
		{write, "/proc/sysrq-trigger /proc/mem /proc/kcore /proc/timer_list /proc/sys/kernel/core_pattern /proc/sys/net/ipv4/ip_forward " +
			"/proc/irq/1/smp_affinity /proc/bus/pci/00 /proc/acpi/x/y /proc/fs/nfsd/threads", true},
		{write, "/proc/1/oom_score_adj /proc/42/attr/exec /proc/42/task/43/comm /proc/1/ns/net", false},
		{read, "/proc/kcore /proc/kmem /sys/firmware/ /sys/firmware/acpi/tables/DSDT /sys/kernel/security/apparmor/profiles /sys/devices/virtual/powercap/x", true},
		{read, "/proc/meminfo /proc/sys/kernel/hostname /proc/1/status /sys/class/net/eth0 /sys/kernel/mm/x /sys/fs/cgroup/memory.max", false},
		{write, "/sys/kernel/uevent_helper /sys/class/net/eth0/mtu /sys/fs/bpf/x /sys/fs/ext4/sda/x /sys/fs/cifs/x /sys/block/sda/x /sys/firmware/efi/x " +
			"/sys/fs/selinux/enforce /sys/f2fs/x", true},
		{write, "/sys/fs/cgroup/x/cgroup.procs /etc/passwd /sys /proc /processes/a/b /tmp/proc/sys/x /dev/null", false},
	} {
		for path := range strings.FieldsSeq(tc.paths) {
			if got := denies(path, tc.permission); got != tc.want {
				t.Errorf("permission %d on %s is denied: %t, want %t", tc.permission, path, got, tc.want)
			}
		}
	}
}

// A node without the parser, or with one that fails, is told what to do.
func TestLoadDefaultFails(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if err := LoadDefault(t.Context()); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "install it") {
		t.Errorf("without a parser: %v", err)
	}
	script := "#!/bin/sh\nread -r line\necho \"no such rule in $line\" >&2\nexit 3\n"
	if err := os.WriteFile(dir+"/apparmor_parser", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(defaultProfile), "\n")
	if err := LoadDefault(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 3: no such rule in "+first) {
		t.Errorf("with a parser that fails: %v", err)
	}
}

func TestListed(t *testing.T) {
	list := []byte("unconfined-ish (unconfined)\nmy profile (enforce)\nodd (name) (complain)\n")
	for name, want := range map[string]bool{"my profile": true, "odd (name)": true, "my": false, "odd": false, "": false, "enforce": false} {
		if got := Listed(list, name); got != want {
			t.Errorf("%q is listed: %t, want %t", name, got, want)
		}
	}
}

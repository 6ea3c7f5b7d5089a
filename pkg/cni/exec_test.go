package cni

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fakePlugins makes a directory with the reference plugins and one more, a shell script.
func fakePlugins(t testing.TB, name, script string) string {
	t.Helper()
	dir := t.TempDir()
	entries, err := os.ReadDir(pluginDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Symlink(filepath.Join(pluginDir, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// startCommand starts a program, waits for its first line, and returns what kills it and waits for its end.
func startCommand(t testing.TB, name string, args ...string) func() {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = bufio.NewReader(out).ReadString('\n')
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}
}

const oneAddress = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"interface":0,"address":"10.82.0.IP/24"}]}`

func fakeNetwork(t testing.TB, script string) *Network {
	return openWith(t, `{"cniVersion":"1.0.0","name":"fake","plugins":[{"type":"fake","capabilities":{"bandwidth":true,"io.kubernetes.cri.pod-annotations":true}}]}`,
		func(o *Options) { o.BinDirs = []string{fakePlugins(t, "fake", script)} })
}

// TestHostilePlugins: the call ends in time, DEL is run, the error says what happened, no process is left.
// rows: P-006b
func TestHostilePlugins(t *testing.T) {
	result := strings.ReplaceAll(oneAddress, "IP", "2")
	for _, c := range []struct{ name, add, err string }{
		{"hangs", "sleep 1000", "did not end in time"},
		{"hangs with children", "sleep 1000 & sleep 1000 | sleep 1000", "did not end in time"},
		{"prints without end", "yes", "printed more than 1024 KiB"},
		{"prints to stderr without end", "yes error >&2", `stderr: "`},
		{"garbage", "echo hello", "invalid character"},
		{"nothing", "true", "unexpected end of JSON"},
		{"null", "echo null", "no address for eth0"},
		{"no address", `echo '{"cniVersion":"1.0.0"}'`, "no address for eth0"},
		{"another interface", "echo '" + strings.ReplaceAll(result, "eth0", "eth1") + "'", "no address for eth0"},
		{"an interface that is not there", "echo '" + strings.ReplaceAll(result, `"interface":0`, `"interface":7`) + "'", "interface 7"},
		{"killed", "kill -9 $$", "signal: killed"},
		{"error without words", "exit 3", "exit status 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			n := fakeNetwork(t, fmt.Sprintf("echo $$ >> %s/pids; echo $CNI_COMMAND >> %s/verbs; [ $CNI_COMMAND = DEL ] && exit 0\n%s", dir, dir, c.add))
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			_, err := n.Setup(ctx, newPod(t))
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), `network "fake"`) {
				t.Errorf("Setup = %v, want an error with %q", err, c.err)
			}
			var left *LeftError
			if errors.As(err, &left) {
				t.Errorf("DEL failed: %v", err)
			}
			if verbs, _ := os.ReadFile(dir + "/verbs"); string(verbs) != "ADD\nDEL\n" {
				t.Errorf("verbs = %q", verbs)
			}
			pids, _ := os.ReadFile(dir + "/pids")
			for pid := range strings.FieldsSeq(string(pids)) {
				group, err := strconv.Atoi(pid)
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, "the process group is gone", func() bool { return syscall.Kill(-group, 0) == syscall.ESRCH })
			}
		})
	}
}

// TestChildLeftBehind: a daemon that a plugin starts may keep stdout; nobody waits for it, and it is not killed.
func TestChildLeftBehind(t *testing.T) {
	dir := t.TempDir()
	n := fakeNetwork(t, "[ $CNI_COMMAND = DEL ] && exit 0; sleep 1000 & echo $! > "+dir+"/pid; echo '"+strings.ReplaceAll(oneAddress, "IP", "2")+"'")
	start := time.Now()
	setup(t, n, newPod(t))
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	data, _ := os.ReadFile(dir + "/pid")
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the child is gone: %v", err)
	}
}

// TestLeftError: ADD and DEL fail. The record stays, so that the port is not given away, until Teardown has done it.
// rows: D-24
func TestLeftError(t *testing.T) {
	dir := t.TempDir()
	n := fakeNetwork(t, "[ -e "+dir+"/works ] || exit 1")
	p := newPod(t)
	p.Ports = []PortMapping{{HostPort: 7600, ContainerPort: 80}}
	_, err := n.Setup(t.Context(), p)
	var left *LeftError
	if !errors.As(err, &left) {
		t.Fatalf("Setup = %v, want a LeftError", err)
	}
	if n.book.get(p.ID) == nil {
		t.Error("the record is gone")
	}
	if err := n.Teardown(t.Context(), p); err == nil {
		t.Error("Teardown = nil")
	}
	if err := os.WriteFile(dir+"/works", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Teardown(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if n.book.get(p.ID) != nil {
		t.Error("the record is left")
	}
}

// TestSameAddressTwice: an IPAM plugin gives one address to two pods. The second is refused, the first lives on.
func TestSameAddressTwice(t *testing.T) {
	n := fakeNetwork(t, "[ $CNI_COMMAND = DEL ] && exit 0; echo '"+strings.ReplaceAll(oneAddress, "IP", "2")+"'")
	setup(t, n, newPod(t))
	second := newPod(t)
	if _, err := n.Setup(t.Context(), second); err == nil || !strings.Contains(err.Error(), "10.82.0.2 was given to two pods") {
		t.Errorf("Setup = %v", err)
	}
	if n.book.get(second.ID) != nil {
		t.Error("record left")
	}
}

// TestWhatPluginsAreTold: environment and capabilities, and only those that the plugin declares.
// rows: D-142, D-143, P-035, P-035a, P-045, S-16
func TestWhatPluginsAreTold(t *testing.T) {
	dir := t.TempDir()
	n := fakeNetwork(t, "env > "+dir+"/env.$CNI_COMMAND; cat > "+dir+"/conf.$CNI_COMMAND; [ $CNI_COMMAND = DEL ] && exit 0; echo '"+strings.ReplaceAll(oneAddress, "IP", "2")+"'")
	p := newPod(t)
	p.Ingress, p.Annotations, p.CgroupPath, p.DNSServers = 1000000, map[string]string{"a": "b"}, "/x", []string{"10.0.0.1"}
	p.Ports = []PortMapping{{HostPort: 7700, ContainerPort: 80}}
	if _, err := n.Setup(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	if err := n.Teardown(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"ADD", "DEL"} {
		env, _ := os.ReadFile(dir + "/env." + verb)
		for _, want := range []string{
			"CNI_CONTAINERID=" + p.ID, "CNI_IFNAME=eth0", "CNI_NETNS=" + p.NetNS,
			fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=%s;K8S_POD_INFRA_CONTAINER_ID=%s;K8S_POD_UID=%s", p.Name, p.ID, p.UID),
		} {
			if !strings.Contains(string(env), want+"\n") {
				t.Errorf("environment of %s lacks %s:\n%s", verb, want, env)
			}
		}
		conf, _ := os.ReadFile(dir + "/conf." + verb)
		want := `"runtimeConfig":{"bandwidth":{"ingressBurst":4294967295,"ingressRate":1000000},"io.kubernetes.cri.pod-annotations":{"a":"b"}}`
		if !strings.Contains(string(conf), want) {
			t.Errorf("configuration of %s lacks %s:\n%s", verb, want, conf)
		}
	}
}

// TestCapabilityInAChain: of two plugins in a chain only the one that declares a capability is told.
// rows: P-035b
func TestCapabilityInAChain(t *testing.T) {
	dir := t.TempDir()
	script := "cat > " + dir + "/$CNI_COMMAND.$(basename $0); [ $CNI_COMMAND = DEL ] && exit 0; echo '" + strings.ReplaceAll(oneAddress, "IP", "2") + "'"
	bin := fakePlugins(t, "first", script)
	if err := os.WriteFile(filepath.Join(bin, "second"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	n := openWith(t, `{"cniVersion":"1.0.0","name":"chain","plugins":[{"type":"first"},{"type":"second","capabilities":{"io.kubernetes.cri.pod-annotations":true}}]}`,
		func(o *Options) { o.BinDirs = []string{bin} })
	p := newPod(t)
	p.Annotations = map[string]string{"a": "b"}
	setup(t, n, p)
	for plugin, want := range map[string]bool{"first": false, "second": true} {
		conf, err := os.ReadFile(dir + "/ADD." + plugin)
		if err != nil || strings.Contains(string(conf), `{"a":"b"}`) != want {
			t.Errorf("the %s plugin was told %s, %v", plugin, conf, err)
		}
	}
}

// TestPreferredFamily: the primary address is of the family that the node prefers, else the first that the network gave.
// rows: D-151
func TestPreferredFamily(t *testing.T) {
	const both = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[` +
		`{"interface":0,"address":"fd00::2/64"},{"interface":0,"address":"10.82.0.2/24"},{"interface":0,"address":"fd00::3/64"}]}`
	for prefer, want := range map[string]string{
		"": "[fd00::2 10.82.0.2 fd00::3]", "ipv4": "[10.82.0.2 fd00::2 fd00::3]", "ipv6": "[fd00::2 fd00::3 10.82.0.2]",
	} {
		n := openWith(t, `{"cniVersion":"1.0.0","name":"fake","plugins":[{"type":"fake"}]}`, func(o *Options) {
			o.BinDirs = []string{fakePlugins(t, "fake", "[ $CNI_COMMAND = DEL ] || echo '"+both+"'")}
			o.Prefer = prefer
		})
		if got := setup(t, n, newPod(t)); fmt.Sprint(got.IPs) != want {
			t.Errorf("prefer %q: %v, want %s", prefer, got.IPs, want)
		}
	}
}

// TestUnknownKey: a key that the built-in plugin does not know is for the real one.
func TestUnknownKey(t *testing.T) {
	conf := strings.Replace(plain(t, "key", t.TempDir()), `"hairpinMode":true`, `"hairpinMode":true,"newOption":1`, 1)
	dir := t.TempDir()
	real := filepath.Join(pluginDir, "bridge")
	bin := fakePlugins(t, "other", "")
	if err := os.Remove(filepath.Join(bin, "bridge")); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\necho $CNI_COMMAND >> %s/verbs; exec %s", dir, real)
	n := openWith(t, conf, func(o *Options) { o.BinDirs = []string{bin} })
	p := newPod(t)
	if _, err := n.Setup(t.Context(), p); err == nil || !strings.Contains(err.Error(), `"newOption"`) || !strings.Contains(err.Error(), bin) {
		t.Errorf("Setup without the program = %v", err)
	}
	if err := os.WriteFile(filepath.Join(bin, "bridge"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := n.Teardown(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	setup(t, n, newPod(t))
	if verbs, _ := os.ReadFile(dir + "/verbs"); string(verbs) != "DEL\nADD\n" {
		t.Errorf("verbs = %q", verbs)
	}
}

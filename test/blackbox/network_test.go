package blackbox

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// serves is a container with an HTTP server on port 80 whose page is text, and an echo on UDP port 7.
func serves(text string) containerTweak {
	return sh("mkdir /www; echo '" + text + "' > /www/index.html; udpsvd -E 0.0.0.0 7 cat & exec httpd -f -p 80 -h /www")
}

// get fetches a page, with patience for a server that has just been started.
func get(t *testing.T, host string) string {
	t.Helper()
	client := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	var text string
	eventually(t, 10*time.Second, "http://"+host+" answers", func() (bool, string) {
		r, err := client.Get("http://" + host + "/")
		if err != nil {
			return false, err.Error()
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		text = strings.TrimSpace(string(b))
		return err == nil && r.StatusCode == http.StatusOK, r.Status
	})
	return text
}

// rows: N-01, D-144, P-037, P-040
func TestPodNetwork(t *testing.T) {
	p := newPod(t)
	c := p.start(serves("here I am"))
	ips := p.ips()
	equal(t, "page", get(t, net.JoinHostPort(ips[0], "80")), "here I am")
	contains(t, "the container's addresses", c.sh("ip addr show dev eth0"), ips...)
	contains(t, "its loopback", c.sh("ip addr show dev lo"), "127.0.0.1")

	peer := newPod(t)
	equal(t, "page seen from another pod", peer.start(asleep()).sh("wget -qO- http://"+ips[0]+"/"), "here I am")
	sibling := p.start(asleep())
	equal(t, "page seen from another container of the pod", sibling.sh("wget -qO- http://127.0.0.1/"), "here I am")
}

// rows: T-03, D-152, P-011
func TestDualStack(t *testing.T) {
	ours(t) // another runtime has the network that it was given
	p := newPod(t)
	p.start(serves("both"))
	ips := p.ips()
	if len(ips) != 2 || !strings.Contains(ips[0], ".") || !strings.Contains(ips[1], ":") {
		t.Fatalf("addresses %v, want one of each family, IPv4 first", ips)
	}
	for _, ip := range ips {
		equal(t, "page at "+ip, get(t, net.JoinHostPort(ip, "80")), "both")
	}
}

// rows: S-10, S-11, S-12, P-041, X-19
func TestHostPorts(t *testing.T) {
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.PortMappings = []*runtimeapi.PortMapping{
			{ContainerPort: 80, HostPort: 28080},
			{ContainerPort: 7, HostPort: 28007, Protocol: runtimeapi.Protocol_UDP},
			{ContainerPort: 81}, // no host port: nothing to map
		}
	})
	p.start(serves("mapped"))
	equal(t, "page at the host port", get(t, "127.0.0.1:28080"), "mapped")
	equal(t, "page by way of the bridge", get(t, bridgeAddress(t, p)+":28080"), "mapped")
	echoes(t, bridgeAddress(t, p)+":28007")

	p.remove()
	if c, err := net.DialTimeout("tcp", "127.0.0.1:28080", time.Second); err == nil {
		c.Close()
		t.Error("the host port is open after the pod was removed")
	}
}

// bridgeAddress is the node's own address in the pods' network.
func bridgeAddress(t *testing.T, p *pod) string {
	t.Helper()
	ip := net.ParseIP(p.ips()[0])
	ifaces, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range ifaces {
		if n, ok := a.(*net.IPNet); ok && n.Contains(ip) {
			return n.IP.String()
		}
	}
	t.Fatalf("no interface is in the network of %v", ip)
	return ""
}

// echoes checks that a UDP datagram comes back.
func echoes(t *testing.T, addr string) {
	t.Helper()
	eventually(t, 10*time.Second, addr+"/udp echoes", func() (bool, string) {
		c, err := net.Dial("udp", addr)
		if err != nil {
			return false, err.Error()
		}
		defer c.Close()
		if _, err := c.Write([]byte("ping")); err != nil {
			return false, err.Error()
		}
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		buf := make([]byte, 16)
		k, err := c.Read(buf)
		return string(buf[:k]) == "ping", fmt.Sprint(err)
	})
}

// rows: S-03, S-06, S-07, S-08, K-09, P-170
func TestNames(t *testing.T) {
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = "a-pod"
		c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10", "fd00::a"}, Searches: []string{"svc.example.org", "example.org"}, Options: []string{"ndots:5"}}
	})
	c := p.start(asleep())
	equal(t, "hostname", c.sh("hostname"), "a-pod")
	contains(t, "resolv.conf", c.sh("cat /etc/resolv.conf"), "search svc.example.org example.org\n", "nameserver 10.0.0.10\nnameserver fd00::a\n", "options ndots:5")
	contains(t, "hosts", c.sh("cat /etc/hosts"), "localhost")
	equal(t, "HOSTNAME", c.sh("echo $HOSTNAME"), "a-pod")
}

// The kubelet brings its own hosts file.
// rows: D-90, M-21
func TestHostsFileOfTheKubelet(t *testing.T) {
	p := newPod(t)
	hosts := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(hosts, []byte("10.1.2.3 made-by-kubelet\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := p.start(asleep(), mounts(&runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: hosts}))
	equal(t, "hosts", c.sh("cat /etc/hosts"), "10.1.2.3 made-by-kubelet")
}

// rows: N-01, S-03, P-032
func TestHostNetwork(t *testing.T) {
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	c := p.start(asleep(), security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	}))
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "network namespace", c.sh("readlink /proc/self/ns/net"), own)
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "hostname", c.sh("hostname"), host)
	equal(t, "the pod's address", p.status().GetNetwork().GetIp(), "")
}

// rows: R-20, D-82
func TestPortForward(t *testing.T) {
	p := newPod(t)
	p.start(serves("forwarded"))
	get(t, p.ips()[0]) // a connection that nobody takes would end the client
	ctx, cancel := context.WithCancel(p.ctx)
	defer cancel()
	var out syncBuffer
	cmd := n.Crictl(ctx, "port-forward", p.id, "28081:80")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	for range 3 {
		equal(t, "page", get(t, "127.0.0.1:28081"), "forwarded")
	}
	// A megabyte each way, and the end of one direction reaches the other side.
	echo := p.start(sh("tcpsvd 127.0.0.1 9 cat"))
	eventually(t, 10*time.Second, "port 9 is listened on", func() (bool, string) {
		r, err := echo.exec("sh", "-c", "netstat -ltn | grep -q '127.0.0.1:9 '")
		return err == nil && r.ExitCode == 0, fmt.Sprint(r, err)
	})
	cmd2 := n.Crictl(ctx, "port-forward", p.id, "28082:9")
	if err := cmd2.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd2.Wait() }()
	if other() {
		return // containerd does not pass on a half-close
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	var got []byte
	eventually(t, 20*time.Second, "a megabyte comes back", func() (bool, string) {
		c, err := net.Dial("tcp", "127.0.0.1:28082")
		if err != nil {
			return false, err.Error()
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		go func() { _, _ = c.Write(sent); _ = c.(*net.TCPConn).CloseWrite() }()
		got, err = io.ReadAll(c)
		return bytes.Equal(got, sent), fmt.Sprintf("%d bytes, %v", len(got), err)
	})
}

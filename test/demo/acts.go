package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/test/images/oci"
	"github.com/criserver/criserver/test/node"
)

const ref = "127.0.0.1:5000/demo/busybox:1"

// start makes an image, serves it, starts the daemon and pulls.
func (s *show) start() error {
	heading("A machine with nothing on it: no configuration, no network, no image")
	err := step("an image is made of Debian's busybox and served on the loopback", s.serveImage)
	if err != nil {
		return err
	}
	err = step("criserver starts, without a configuration file", func() (err error) {
		s.node, err = node.Start("demo", node.Options{Bare: true})
		return err
	})
	if err != nil {
		return err
	}
	for _, args := range [][]string{{"version"}, {"pull", ref}, {"images"}} {
		out, err := s.crictl(args...)
		if err != nil {
			return err
		}
		output(out)
	}
	return nil
}

// serveImage makes an image of busybox with a name for each of its commands.
func (s *show) serveImage() error {
	list, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return err
	}
	l, err := oci.Create(filepath.Join(s.dir, "image"))
	if err != nil {
		return err
	}
	layer := l.Layer(func(t *oci.Tree) {
		t.Copy("bin/busybox", 0o755, "/bin/busybox")
		for _, name := range strings.Fields(string(list)) {
			if name != "busybox" {
				t.Symlink("bin/"+name, "busybox")
			}
		}
		t.Dir(0o1777, "tmp")
		t.File("etc/passwd", "root:x:0:0:root:/:/bin/sh\n")
	})
	l.Tag(ref, l.Image(oci.Image{Layers: []oci.Layer{layer}, Config: ocispec.ImageConfig{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}}}))
	if err := l.Finish(); err != nil {
		return err
	}
	return node.Serve(l)
}

const (
	webScript    = `mkdir /www; echo "hello from $(hostname), process $$ of its namespace" > /www/index.html; exec httpd -f -p 80 -h /www`
	clientScript = `i=0; while :; do i=$((i+1)); echo "answer $i: $(wget -qO- http://127.0.0.1/)"; sleep 0.2; done`
)

// labels are those by which crictl knows the pod of a container, as the kubelet sets them.
var labels = map[string]string{"io.kubernetes.pod.name": "demo", "io.kubernetes.pod.namespace": "default"}

// pod runs a pod with two containers that talk to each other over its loopback.
func (s *show) pod() error {
	heading("A pod with a network of its own and two containers")
	podFile, err := s.file("pod.json", &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "demo", Namespace: "default", Uid: "demo-1"},
		Hostname: "demo", LogDirectory: filepath.Join(s.dir, "logs"), Labels: labels,
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: node.CgroupParent()},
	})
	if err != nil {
		return err
	}
	if s.sandbox, err = s.crictl("runp", podFile); err != nil {
		return err
	}
	for _, c := range []struct {
		name, script string
		id           *string
	}{{"web", webScript, &s.web}, {"client", clientScript, &s.client}} {
		file, err := s.file(c.name+".json", &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: c.name}, Image: &runtimeapi.ImageSpec{Image: ref}, Labels: labels,
			Command: []string{"/bin/sh", "-c", c.script}, LogPath: c.name + ".log",
			Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}},
		})
		if err != nil {
			return err
		}
		if *c.id, err = s.crictl("create", "--no-pull", s.sandbox, file, podFile); err != nil {
			return err
		}
		if _, err := s.crictl("start", *c.id); err != nil {
			return err
		}
	}
	out, err := s.crictl("ps")
	output(out)
	return err
}

// file writes a configuration for crictl.
func (s *show) file(name string, v any) (string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return "", err
	}
	path := filepath.Join(s.dir, name)
	return path, os.WriteFile(path, b, 0o644)
}

// look shows what one looks at when a pod runs.
func (s *show) look() error {
	heading("Looking at it")
	if err := s.awaitAnswers(3); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"logs", "--tail", "3", s.client},
		{"exec", s.web, "sh", "-c", "ip -o -4 addr show eth0; ps"},
	} {
		out, err := s.crictl(args...)
		if err != nil {
			return err
		}
		output(out)
	}
	if err := s.portForward(); err != nil {
		return err
	}
	out, err := s.crictl("stats") // takes a second between two readings
	output(strings.TrimPrefix(out, "\033[2J\033[H"))
	return err
}

// portForward fetches the pod's page by way of a port of this machine.
func (s *show) portForward() error {
	ctx, cancel := context.WithCancel(context.Background())
	cmd := s.node.Crictl(ctx, "port-forward", s.sandbox, "8080:80")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	defer func() { cancel(); _ = cmd.Wait() }() // it runs until it is ended
	if err != nil {
		return err
	}
	var page []byte
	err = step("$ crictl port-forward "+s.short([]string{s.sandbox})+" 8080:80, and a GET through it", func() error {
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil { // "Forwarding from ..."
			return err
		}
		client := http.Client{Timeout: 10 * time.Second}
		r, err := client.Get("http://127.0.0.1:8080/")
		if err != nil {
			return err
		}
		defer r.Body.Close()
		page, err = io.ReadAll(r.Body)
		return err
	})
	output(string(page))
	return err
}

// answers counts what the client has logged; the log is a file that grows whether the daemon lives or not.
func (s *show) answers() int {
	b, _ := os.ReadFile(filepath.Join(s.dir, "logs/client.log")) // not there yet: none
	return strings.Count(string(b), ": hello from")
}

func (s *show) awaitAnswers(more int) error {
	want := s.answers() + more
	for range 500 {
		if s.answers() >= want {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.New("the client gets no answers from its neighbour")
}

// crash kills the daemon and shows that the pod does not care.
func (s *show) crash() error {
	heading("The daemon is killed")
	if err := step(fmt.Sprintf("SIGKILL to criserver, process %d", s.node.Pid()), s.node.Kill); err != nil {
		return err
	}
	before := s.answers()
	if err := step("while it is away the client goes on and is logged", func() error { return s.awaitAnswers(5) }); err != nil {
		return err
	}
	output(fmt.Sprintf("%d answers before, %d now", before, s.answers()))
	if err := step("criserver starts again and takes up what runs", s.node.Boot); err != nil {
		return err
	}
	for _, args := range [][]string{{"ps"}, {"exec", s.web, "hostname"}, {"logs", "--tail", "2", s.client}} {
		out, err := s.crictl(args...)
		if err != nil {
			return err
		}
		output(out)
	}
	return s.checkLog()
}

// checkLog counts: the answers are numbered, so a lost or doubled line shows.
func (s *show) checkLog() error {
	return step("every line of the client's log is there, once and in order", func() error {
		b, err := os.ReadFile(filepath.Join(s.dir, "logs/client.log"))
		if err != nil {
			return err
		}
		number := 0
		for line := range strings.Lines(string(b)) {
			if !strings.Contains(line, " F answer ") {
				continue // the rest of a line that came in pieces
			}
			if number++; !strings.Contains(line, fmt.Sprintf(" F answer %d: hello from", number)) {
				return fmt.Errorf("in place of answer %d stands %q", number, line)
			}
		}
		return nil
	})
}

// end removes the pod and ends the daemon and the shim.
func (s *show) end() error {
	heading("Cleaning up")
	if _, err := s.crictl("rmp", "--force", s.sandbox); err != nil {
		return err
	}
	if err := step("criserver and its shim end; nothing is left", s.node.Retire); err != nil {
		return err
	}
	fmt.Println()
	return nil
}

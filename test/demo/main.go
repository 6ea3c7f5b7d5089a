// Command demo shows criserver at work, to a person who watches: from nothing to a pod with two containers, through the
// real crictl, and past the death of the daemon. `make demo` runs it. All happens in namespaces of its own, so that
// nothing of this machine's network or mounts is touched and nothing is left at the end.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/criserver/criserver/test/node"
)

func main() {
	if !node.Inside() {
		if err := prepare(); err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			os.Exit(1)
		}
	}
	node.Main(demo{}, func() error { return nil })
}

// prepare installs what is missing and builds. The working directory is the project's root.
func prepare() error {
	if os.Geteuid() != 0 {
		return errors.New("run it as root: it makes namespaces, mounts and cgroups")
	}
	heading("Preparing")
	for _, s := range []struct {
		what    string
		command []string
	}{
		{"Debian packages that are missing are installed", []string{"make", "-s", "deps-demo"}},
		{"criserver and criserver-shim are built", []string{"make", "-s", "build"}},
		{"crictl is built, Kubernetes' own client", []string{"make", "-s", "crictl"}},
	} {
		err := step(s.what, func() error {
			cmd := exec.Command(s.command[0], s.command[1:]...)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%s: %w\n%s", strings.Join(s.command, " "), err, out.String())
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// demo is the program that runs on the node.
type demo struct{}

func (demo) Run() int {
	s := &show{dir: filepath.Join(node.Scratch(), "show")}
	for _, act := range []func() error{s.start, s.pod, s.look, s.crash, s.end} {
		if err := act(); err != nil {
			fmt.Fprintln(os.Stderr, "\ndemo:", err)
			if s.node != nil {
				fmt.Fprintf(os.Stderr, "the end of the daemon's log:\n%s\n", s.node.LogTail(20))
			}
			return 1
		}
	}
	return 0
}

// show is what the acts share.
type show struct {
	dir     string
	node    *node.Node
	sandbox string
	web     string
	client  string
}

// styled is the text in a style of terminals, if a terminal shows it.
func styled(style, text string) string {
	if fi, err := os.Stdout.Stat(); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		return text
	}
	return "\033[" + style + "m" + text + "\033[0m"
}

// heading announces an act.
func heading(text string) { fmt.Println("\n" + styled("1", text)) }

// step says what is done and, when it is done, how long it took.
func step(what string, do func() error) error {
	fmt.Printf("  %-66s", what)
	start := time.Now()
	err := do()
	took := time.Since(start)
	unit := fmt.Sprintf("%8.1f s ", took.Seconds())
	if took < time.Second {
		unit = fmt.Sprintf("%8.1f ms", float64(took.Microseconds())/1000)
	}
	if err != nil {
		unit = "  FAILED"
	}
	fmt.Println(unit)
	return err
}

// crictl runs the real client, shows the command and its time, and returns what it printed.
func (s *show) crictl(args ...string) (string, error) {
	var out bytes.Buffer
	var stderr bytes.Buffer
	err := step("$ crictl "+s.short(args), func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		cmd := s.node.Crictl(ctx, args...)
		cmd.Stdout, cmd.Stderr = &out, &stderr
		return cmd.Run()
	})
	if err != nil {
		err = fmt.Errorf("crictl %s: %w\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimRight(out.String(), "\n"), err
}

// short leaves out of a command what a reader need not see: long IDs and directories.
func (s *show) short(args []string) string {
	var words []string
	for _, a := range args {
		if len(a) == 64 {
			a = a[:12]
		}
		words = append(words, strings.TrimPrefix(a, s.dir+"/"))
	}
	return strings.Join(words, " ")
}

// output shows what a command printed.
func output(text string) {
	for line := range strings.Lines(text) {
		fmt.Println("      " + styled("2", strings.TrimRight(line, "\n")))
	}
}

// Package critest runs the Kubernetes project's critest against criserver, spec by spec, with the images of test/images
// in place of upstream's. A spec that fails is a failed test; so is one that skips for a reason we do not expect.
package critest

import (
	"context"
	"encoding/xml"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/criserver/criserver/test/node"
)

var focus = flag.String("focus", "", "run only the specs that match this `regexp`")

// maySkip are the specs that find out by themselves that they cannot run here: AppArmor and SELinux want a kernel that
// has them, benchmarks a file with their parameters.
var maySkip = regexp.MustCompile(`AppArmor|SELinux|benchmark`)

func TestMain(m *testing.M) {
	node.Main(m, node.ServeImages)
}

func TestCritest(t *testing.T) {
	n, err := node.Start("critest", node.Options{})
	if err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(t.TempDir(), "junit.xml")
	began := time.Now()
	output, runErr := critest(t, n, report)
	specs, err := read(report)
	if err != nil {
		t.Fatalf("critest left no report (%v): %v\n%s", runErr, err, tail(output, 50))
	}
	failed := false
	for _, s := range specs {
		if s.Status == "skipped" && s.Skipped == nil || !strings.HasPrefix(s.Name, "[It] ") {
			continue // not in focus; or a part of critest's own frame
		}
		failed = !t.Run(strings.TrimPrefix(s.Name, "[It] "), s.judge) || failed
	}
	if runErr != nil && !failed {
		t.Errorf("critest: %v\n%s", runErr, tail(output, 50))
	}
	if *focus == "" {
		checkTable(t, specs)
	}
	if t.Failed() {
		t.Logf("%d specs in %.0f s; the end of the daemon's log:\n%s", len(specs), time.Since(began).Seconds(), n.LogTail(30))
	}
}

// checkTable holds the table from which docs/conformance.md has its rows to what was run: every spec that ran has a row,
// and no row has a spec that did not.
func checkTable(t *testing.T, specs []spec) {
	t.Helper()
	b, err := os.ReadFile("../conformance/critest.tsv")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if id, name, ok := strings.Cut(strings.TrimSpace(line), "\t"); ok {
			rows["[It] "+name] = id
		}
	}
	for _, s := range specs {
		if s.Skipped != nil || !strings.HasPrefix(s.Name, "[It] ") {
			continue
		}
		if rows[s.Name] == "" {
			t.Errorf("critest.tsv has no row for %q", s.Name)
		}
		delete(rows, s.Name)
	}
	for name, id := range rows {
		t.Errorf("%s: %q did not run", id, name)
	}
}

// critest runs it to its end.
func critest(t *testing.T, n *node.Node, report string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	endpoint := "unix://" + n.Socket
	args := []string{"--config", "/dev/null", "--runtime-endpoint", endpoint, "--image-endpoint", endpoint,
		"--ginkgo.no-color", "--ginkgo.timeout", "24m", "--ginkgo.junit-report", report}
	if *focus != "" {
		args = append(args, "--ginkgo.focus", *focus)
	}
	return exec.CommandContext(ctx, filepath.Join(*node.CacheDir, "bin/critest"), args...).CombinedOutput()
}

// spec is a test case of a JUnit report.
type spec struct {
	Name    string   `xml:"name,attr"`
	Status  string   `xml:"status,attr"`
	Time    float64  `xml:"time,attr"`
	Failure *message `xml:"failure"`
	Error   *message `xml:"error"`
	Skipped *message `xml:"skipped"`
	Stderr  string   `xml:"system-err"`
}

type message struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

func read(report string) ([]spec, error) {
	b, err := os.ReadFile(report)
	if err != nil {
		return nil, err
	}
	var r struct {
		Specs []spec `xml:"testsuite>testcase"`
	}
	if err := xml.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	if len(r.Specs) == 0 {
		return nil, fmt.Errorf("%s has no specs", report)
	}
	return r.Specs, nil
}

func (s spec) judge(t *testing.T) {
	for _, bad := range []*message{s.Failure, s.Error} {
		if bad != nil {
			t.Fatalf("after %.1f s: %s\n%s", s.Time, strings.TrimSpace(bad.Message+"\n"+bad.Text), tail([]byte(s.Stderr), 40))
		}
	}
	if s.Skipped == nil {
		return
	}
	if !maySkip.MatchString(s.Name) {
		t.Errorf("skipped: %s", s.Skipped.Message)
	}
	t.Skip(s.Skipped.Message)
}

func tail(b []byte, lines int) string {
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

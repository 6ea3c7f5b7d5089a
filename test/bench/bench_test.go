package main

import (
	"encoding/json"
	"encoding/xml"
	"flag"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/criserver/criserver/test/node"
)

// The node of a bench is this program again.
func TestMain(m *testing.M) {
	flag.Parse()
	if *serveIn != "" || node.Inside() {
		main()
	}
	os.Exit(m.Run())
}

// The whole of the bench in small, with a second criserver as the peer: every case has its figures for both, they are
// written in all forms, and nothing is left. Only pull is left out, whose image is large.
func TestBench(t *testing.T) {
	dir := t.TempDir()
	document := filepath.Join(dir, "performance.md")
	if err := os.WriteFile(document, []byte("before\n"+figuresBegin+"old\n"+figuresEnd+"after\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"rounds": "1", "scale": "0.02", "out": filepath.Join(dir, "out"), "doc": document, "registry": freeAddress(t),
		"cases": "life,exec,list,log,idle,restart,growth,endurance"} {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	group := groupName("second")
	endpoint, stop, err := boot(group)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
		if err := (&meter{group: group}).close(); err != nil {
			t.Error(err)
		}
	}()
	*peerAddr, *peerRestart = endpoint, "true" // its node sees to it
	if err := run(t.Context()); err != nil {
		t.Fatal(err)
	}

	var r report
	if err := json.Unmarshal([]byte(read(t, filepath.Join(dir, "out/bench.json"))), &r); err != nil {
		t.Fatal(err)
	}
	checkFigures(t, r)
	checkDocument(t, document)
	left, _ := filepath.Glob("/sys/fs/cgroup/*" + groupName("*"))
	for _, dir := range left {
		if filepath.Base(dir) != filepath.Base(group) {
			t.Errorf("cgroup %s is left", dir)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func read(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// checkFigures: each of the cases has figures, and each figure is there for both runtimes and can be true.
func checkFigures(t *testing.T, r report) {
	t.Helper()
	if len(r.Runtimes) != 2 || r.Runtimes[0].Name != "criserver" || r.Runtimes[1].Name != "criserver (peer)" {
		t.Fatalf("runtimes %v", r.Runtimes)
	}
	seen := map[string]bool{}
	for _, m := range r.Metrics {
		name, _, _ := strings.Cut(m.Case, ":")
		seen[name] = true
		for _, rt := range r.Runtimes {
			if len(m.Values[rt.Name]) == 0 {
				t.Errorf("%s, %s: no figure of %s", m.Case, m.Name, rt.Name)
			}
			for _, v := range m.Values[rt.Name] {
				// CPU is a counter that may stand still, and memory of one more pod is a difference.
				if v < 0 && !strings.Contains(m.Name, "memory of") || v == 0 && m.Unit == "ms" && !strings.HasPrefix(m.Name, "CPU") {
					t.Errorf("%s, %s of %s: %v", m.Case, m.Name, rt.Name, v)
				}
			}
		}
		if m.Case == "life: own network, one by one" && m.Name == stepUp {
			parts := percentile(values(r, m.Case, stepRun), 0.5) + percentile(values(r, m.Case, stepStart), 0.5)
			if up := percentile(values(r, m.Case, stepUp), 0.5); up < parts {
				t.Errorf("pod up takes %v ms, and two of its parts %v", up, parts)
			}
		}
	}
	for _, name := range strings.Split(*caseNames, ",") {
		if !seen[name] {
			t.Errorf("case %s has no figures", name)
		}
	}
}

func values(r report, label, name string) []float64 {
	for _, m := range r.Metrics {
		if m.Case == label && m.Name == name {
			return m.Values[r.Runtimes[0].Name]
		}
	}
	return nil
}

// checkDocument: the marked place has the table and the plot, and what is around it has not changed.
func checkDocument(t *testing.T, file string) {
	t.Helper()
	text := read(t, file)
	for _, want := range []string{"before\n" + figuresBegin, figuresEnd + "after\n", "![ratios](performance.svg)", "| exec: one by one | ExecSync, ms |", "ratio"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if strings.Contains(text, "old\n") {
		t.Error("the old figures are still there")
	}
	svg := xml.NewDecoder(strings.NewReader(read(t, strings.TrimSuffix(file, ".md")+".svg")))
	bars := 0
	for {
		token, err := svg.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("the plot is not XML: %v", err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "rect" {
			bars++
		}
	}
	if bars < 8 {
		t.Errorf("the plot has %d rectangles", bars)
	}
}

func TestPercentile(t *testing.T) {
	ten := []float64{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}
	for q, want := range map[float64]float64{0: 1, 0.5: 5, 0.9: 9, 0.99: 10, 1: 10} {
		if got := percentile(ten, q); got != want {
			t.Errorf("%v of ten: %v, want %v", q, got, want)
		}
	}
	if got := percentile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("of nothing: %v", got)
	}
}

// A ratio above 1 is always in our favour; without both figures there is none.
func TestRatio(t *testing.T) {
	r := report{Runtimes: []runtimeName{{"a", "1"}, {"b", "2"}}}
	for _, c := range []struct {
		unit    string
		a, b, w float64
	}{{"ms", 2, 6, 3}, {"MB/s", 6, 2, 3}, {"ms", 6, 2, 1. / 3}, {"ms", 0, 2, math.NaN()}} {
		got := r.ratio(&metric{Unit: c.unit, Values: map[string][]float64{"a": {c.a}, "b": {c.b}}})
		if got != c.w && !(math.IsNaN(got) && math.IsNaN(c.w)) {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if got := r.ratio(&metric{Unit: "ms", Values: map[string][]float64{"a": {1}}}); !math.IsNaN(got) {
		t.Errorf("no figure of the peer: %v", got)
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 1234.5: "1234", 31.24: "31.2", 3.456: "3.46", 0.0123: "0.012", -26.14: "-26.1", math.NaN(): "-"} {
		if got := number(v); got != want {
			t.Errorf("%v: %s, want %s", v, got, want)
		}
	}
}

// A document without a marked place is left as it is.
func TestFillRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.md")
	if err := os.WriteFile(file, []byte("text\n"+figuresEnd), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := fill(file, "table", nil); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("error %v", err)
	}
	if got := read(t, file); got != "text\n"+figuresEnd {
		t.Errorf("it became %q", got)
	}
}

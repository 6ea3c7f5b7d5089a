package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// report is everything that was measured; bench.json is its JSON.
type report struct {
	Time     time.Time
	Machine  string
	Load     string // when it began
	Rounds   int
	Scale    float64
	Runtimes []runtimeName // ours first
	Metrics  []*metric
}

type runtimeName struct{ Name, Version string }

// metric is a figure, with every value that was measured, in all rounds.
type metric struct {
	Case, Name string
	Unit       string               // with "/s" more is better, else less is
	Values     map[string][]float64 // by the runtime's name
}

// recorder notes the figures of a case for one runtime.
type recorder struct {
	report  *report
	runtime string
	label   string
}

// part is a recorder for a part of the case.
func (r recorder) part(format string, args ...any) recorder {
	r.label += ": " + fmt.Sprintf(format, args...)
	return r
}

func (r recorder) add(name, unit string, values ...float64) {
	for _, m := range r.report.Metrics {
		if m.Case == r.label && m.Name == name {
			m.Values[r.runtime] = append(m.Values[r.runtime], values...)
			return
		}
	}
	r.report.Metrics = append(r.report.Metrics, &metric{r.label, name, unit, map[string][]float64{r.runtime: values}})
}

func newReport(targets []*target) *report {
	var uname unix.Utsname
	_ = unix.Uname(&uname) // fails for a bad address alone
	load, _ := os.ReadFile("/proc/loadavg")
	r := &report{Time: time.Now().UTC().Truncate(time.Second), Rounds: *rounds, Scale: *scale,
		Machine: fmt.Sprintf("%d processors, Linux %s", runtime.NumCPU(), unix.ByteSliceToString(uname.Release[:])),
		Load:    strings.Join(strings.Fields(string(load))[:3], " ")}
	for _, t := range targets {
		r.Runtimes = append(r.Runtimes, runtimeName{t.name, t.version})
	}
	return r
}

// percentile is the value below or at which q of all values are, by the nearest rank; NaN without values.
func percentile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// ratio is how much better ours is than the peer at the median; NaN if one has no figure, or zero.
func (r *report) ratio(m *metric) float64 {
	if len(r.Runtimes) < 2 {
		return math.NaN()
	}
	ours, peer := percentile(m.Values[r.Runtimes[0].Name], 0.5), percentile(m.Values[r.Runtimes[1].Name], 0.5)
	if strings.HasSuffix(m.Unit, "/s") {
		ours, peer = peer, ours
	}
	if ours <= 0 || peer <= 0 {
		return math.NaN()
	}
	return peer / ours
}

// markdown is the table, with a line above it on what was measured where.
func (r *report) markdown() string {
	var b strings.Builder
	var of []string
	for _, rt := range r.Runtimes {
		of = append(of, rt.Name+" "+rt.Version)
	}
	fmt.Fprintf(&b, "%s; %s, %d rounds at scale %g, load before: %s, %s.\n\n| | |", strings.Join(of, " and "), r.Time.Format(time.DateOnly), r.Rounds, r.Scale, r.Load, r.Machine)
	rule := "\n|---|---|"
	for _, rt := range r.Runtimes {
		fmt.Fprintf(&b, " %s p50 | p90 | p99 |", rt.Name)
		rule += "---:|---:|---:|"
	}
	if len(r.Runtimes) > 1 {
		b.WriteString(" ratio |")
		rule += "---:|"
	}
	b.WriteString(rule + "\n")
	for _, m := range r.Metrics {
		fmt.Fprintf(&b, "| %s | %s |", m.Case, strings.TrimSuffix(m.Name+", "+m.Unit, ", "))
		for _, rt := range r.Runtimes {
			for _, q := range []float64{0.5, 0.9, 0.99} {
				fmt.Fprintf(&b, " %s |", number(percentile(m.Values[rt.Name], q)))
			}
		}
		if len(r.Runtimes) > 1 {
			fmt.Fprintf(&b, " %s |", number(r.ratio(m)))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// number has three digits that matter, and is a dash where there is none.
func number(v float64) string {
	if math.IsNaN(v) {
		return "-"
	}
	digits := 2
	if v != 0 {
		digits = min(3, max(0, 2-int(math.Floor(math.Log10(math.Abs(v))))))
	}
	return fmt.Sprintf("%.*f", digits, v)
}

// The marked place in a document.
const (
	figuresBegin = "<!-- figures: `make bench DOC=...` writes what stands between here -->\n"
	figuresEnd   = "<!-- figures: and here -->\n"
)

// write prints the table and writes the files; outDir and doc may be empty.
func (r *report) write(outDir, doc string) (err error) {
	table := r.markdown()
	fmt.Print(table)
	var plot []byte
	if len(r.Runtimes) > 1 {
		if plot, err = r.plot(); err != nil {
			return err
		}
	}
	if outDir != "" {
		j, err := json.MarshalIndent(r, "", " ")
		if err != nil {
			return err
		}
		err = errors.Join(os.MkdirAll(outDir, 0o755), os.WriteFile(filepath.Join(outDir, "bench.json"), append(j, '\n'), 0o644),
			os.WriteFile(filepath.Join(outDir, "bench.md"), []byte(table), 0o644))
		if plot != nil {
			err = errors.Join(err, os.WriteFile(filepath.Join(outDir, "bench.svg"), plot, 0o644))
		}
		if err != nil {
			return err
		}
	}
	if doc == "" {
		return nil
	}
	return fill(doc, table, plot)
}

// fill puts the table into the marked place of a document and the plot beside it, under its name with .svg.
func fill(doc, table string, plot []byte) error {
	b, err := os.ReadFile(doc)
	if err != nil {
		return err
	}
	before, rest, found := bytes.Cut(b, []byte(figuresBegin))
	_, after, found2 := bytes.Cut(rest, []byte(figuresEnd))
	if !found || !found2 {
		return fmt.Errorf("%s has no marked place: a line %q and a line %q", doc, strings.TrimSpace(figuresBegin), strings.TrimSpace(figuresEnd))
	}
	if plot != nil {
		svg := strings.TrimSuffix(doc, filepath.Ext(doc)) + ".svg"
		table = fmt.Sprintf("![ratios](%s)\n\n%s", filepath.Base(svg), table)
		if err := os.WriteFile(svg, plot, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(doc, slices.Concat(before, []byte(figuresBegin+"\n"+table+"\n"+figuresEnd), after), 0o644)
}

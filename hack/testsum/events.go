package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// tally counts tests. A test with subtests is counted by its subtests, unless it failed by itself.
type tally struct{ passed, failed, skipped int }

func (t *tally) add(o tally) {
	t.passed += o.passed
	t.failed += o.failed
	t.skipped += o.skipped
}

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action     string
	Package    string
	ImportPath string // of build-output and build-fail
	Test       string
	Elapsed    float64
	Output     string
}

// reader turns events into a tally and prints what failed, as it happens.
type reader struct {
	out     io.Writer
	verbose bool

	output  map[string][]string // what a running test, a package or a build has said
	parents map[string]bool     // tests that have subtests
	broken  map[string]bool     // tests of which a subtest failed, packages of which a test failed
	sum     tally
}

func (r *reader) read(in io.Reader) tally {
	r.output, r.parents, r.broken = map[string][]string{}, map[string]bool{}, map[string]bool{}
	s := bufio.NewScanner(in)
	s.Buffer(nil, 64<<20)
	for s.Scan() {
		var e event
		if json.Unmarshal(s.Bytes(), &e) != nil || e.Action == "" {
			fmt.Fprintln(r.out, s.Text()) // not an event: the go command itself complains
			continue
		}
		r.event(e)
	}
	if err := s.Err(); err != nil {
		fmt.Fprintln(r.out, "FAIL reading test events:", err)
		r.sum.failed++
	}
	return r.sum
}

func (r *reader) event(e event) {
	key := e.Package + e.ImportPath + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		r.output[key] = append(r.output[key], e.Output)
	case "run":
		for i, c := range e.Test {
			if c == '/' {
				r.parents[e.Package+" "+e.Test[:i]] = true
			}
		}
	case "build-fail":
		r.fail(e, key)
		r.broken[e.ImportPath] = true
	case "pass", "fail", "skip":
		r.end(e, key)
		delete(r.output, key)
	}
}

// end counts the end of a test or of a package.
func (r *reader) end(e event, key string) {
	ownFailure := e.Action == "fail" && !r.broken[key]
	switch {
	case e.Test == "":
		// A package that fails without a failed test: a panic, a timeout, TestMain. One that did not build was counted.
		if ownFailure && !r.buildBroken(e.Package) {
			r.fail(e, key)
		} else if r.verbose || e.Action == "pass" {
			fmt.Fprintf(r.out, "%-4s %s (%.1f s)\n", e.Action, e.Package, e.Elapsed)
		}
	case ownFailure:
		r.fail(e, key)
	case r.parents[key] || e.Action == "fail":
		// its subtests were counted
	case e.Action == "skip":
		r.sum.skipped++
		fmt.Fprintf(r.out, "skip %s: %s\n", e.Test, reason(r.output[key]))
	default:
		r.sum.passed++
		if r.verbose {
			fmt.Fprintf(r.out, "ok   %s (%.2f s)\n", e.Test, e.Elapsed)
		}
	}
	if e.Action == "fail" {
		r.breakParents(e)
	}
}

// fail prints and counts a failure, with what was said before it.
func (r *reader) fail(e event, key string) {
	r.sum.failed++
	fmt.Fprintf(r.out, "\nFAIL %s %s (%.1f s)\n", e.Package+e.ImportPath, e.Test, e.Elapsed)
	for _, line := range r.output[key] {
		if !strings.HasPrefix(strings.TrimSpace(line), "=== ") && !strings.HasPrefix(strings.TrimSpace(line), "--- ") {
			fmt.Fprint(r.out, "    ", line)
		}
	}
	fmt.Fprintln(r.out)
}

func (r *reader) breakParents(e event) {
	r.broken[e.Package+" "] = e.Test != "" || r.broken[e.Package+" "]
	for i, c := range e.Test {
		if c == '/' {
			r.broken[e.Package+" "+e.Test[:i]] = true
		}
	}
}

// buildBroken: the build of a test names its package in one of several forms, as in "p [p.test]".
func (r *reader) buildBroken(pkg string) bool {
	for b := range r.broken {
		if b == pkg || strings.HasPrefix(b, pkg+" [") || strings.HasPrefix(b, pkg+"_test [") || strings.HasPrefix(b, pkg+".test") {
			return true
		}
	}
	return false
}

// reason is the last thing a skipped test said.
func reason(output []string) string {
	for i := len(output) - 1; i >= 0; i-- {
		if l := strings.TrimSpace(output[i]); l != "" && !strings.HasPrefix(l, "---") && !strings.HasPrefix(l, "===") {
			return l
		}
	}
	return "no reason given"
}

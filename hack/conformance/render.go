package main

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

const preface = `# Conformance

What Kubernetes asks of a container runtime, and which test of this tree proves that criserver does it. The rows are
the calls, fields and unwritten contracts of CRI v1 (cri-api v0.37), the specs of critest, and cases that the integration
tests of other runtimes check. ` + "`yes`" + ` means that the tests named prove the row; without a test it is ` + "`no`" + `, or, when it
needs something that the test machine does not have, ` + "`not here`" + `. Tests are in the directory before the dot; critest
runs in test/critest.

This page is written by ` + "`go run ./hack/conformance`" + `; [test/README.md](../test/README.md) says how a test declares its rows.

`

// render writes the page. A proof of a row that does not exist is an error.
func render(sections []section, proofs []proof) ([]byte, error) {
	tests := map[string][]string{}
	for _, s := range sections {
		for _, r := range s.rows {
			tests[r.id] = nil
		}
	}
	var errs []error
	for _, p := range proofs {
		have, known := tests[p.id]
		if !known {
			errs = append(errs, fmt.Errorf("%s: no row has the ID %q", p.at, p.id))
		} else if !slices.Contains(have, p.test) {
			tests[p.id] = append(have, p.test)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	var b, counts bytes.Buffer
	sum := tally{}
	for _, s := range sections {
		fmt.Fprintf(&b, "\n## %s\n\n| row | what | proven | by |\n|---|---|---|---|\n", s.title)
		t := tally{}
		for _, r := range s.rows {
			proven := verdict(r, tests[r.id])
			t[proven]++
			sum[proven]++
			slices.Sort(tests[r.id])
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.id, cell(r.title), proven+need(r), cell(strings.Join(tests[r.id], ", ")))
		}
		fmt.Fprintf(&counts, "| %s | %s |\n", s.title, t)
	}
	head := fmt.Sprintf("| part | yes | no | not here |\n|---|---|---|---|\n%s| **all** | %s |\n", counts.String(), sum)
	return []byte(preface + head + b.String()), nil
}

const yes, no, notHere = "yes", "no", "not here"

// tally counts verdicts.
type tally map[string]int

func (t tally) String() string { return fmt.Sprintf("%d | %d | %d", t[yes], t[no], t[notHere]) }

func verdict(r row, tests []string) string {
	switch {
	case len(tests) > 0:
		return yes
	case r.needs != "":
		return notHere
	default:
		return no
	}
}

// need is what stands behind a verdict about a row that cannot be tried everywhere.
func need(r row) string {
	if r.needs == "" {
		return ""
	}
	return " (" + r.needs + ")"
}

// cell is text that does not break its table.
func cell(s string) string { return strings.NewReplacer("|", `\|`, "<", "&lt;").Replace(s) }

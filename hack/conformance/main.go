// Command conformance writes docs/conformance.md: what is asked of a container runtime for Kubernetes, row by row, and
// the tests that prove it of this one.
//
// The rows stand in test/conformance/rows.tsv. A test declares those it proves in its doc comment or its body:
//
//	// rows: R-02, S-12
//
// and critest's specs are given theirs by test/conformance/critest.tsv. A row that nothing proves is never a yes. The
// test of this command fails when the page is not what the command would write.
//
//	go run ./hack/conformance
package main

import (
	"fmt"
	"os"
)

const page = "docs/conformance.md"

func main() {
	text, err := generate(".")
	if err == nil {
		err = os.WriteFile(page, text, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

// generate makes the page from the tree at root.
func generate(root string) ([]byte, error) {
	sections, err := readRows(root + "/test/conformance/rows.tsv")
	if err != nil {
		return nil, err
	}
	proofs, err := declarations(root)
	if err != nil {
		return nil, err
	}
	specs, err := critestSpecs(root + "/test/conformance/critest.tsv")
	if err != nil {
		return nil, err
	}
	return render(sections, append(proofs, specs...))
}

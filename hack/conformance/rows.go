package main

import (
	"fmt"
	"os"
	"regexp"
	"strings"
)

// section is a heading and its rows.
type section struct {
	title string
	rows  []row
}

// row is one thing that is asked of a runtime.
type row struct {
	id    string
	title string
	needs string // of the machine, beyond Linux and root; "" is nothing
}

var rowID = regexp.MustCompile(`^[A-Z]+[0-9]*(-[0-9]+[a-z]?)?$`)

// readRows reads lines of ID, title and needs, parted by tabs; `# Title` begins a section, `#-` is a comment.
func readRows(file string) (sections []section, err error) {
	seen := map[string]bool{}
	err = eachLine(file, func(line string) error {
		if title, ok := strings.CutPrefix(line, "# "); ok {
			sections = append(sections, section{title: title})
			return nil
		}
		f := strings.Split(line, "\t")
		switch {
		case len(f) < 2 || len(f) > 3:
			return fmt.Errorf("want ID, title and perhaps a need, parted by tabs: %q", line)
		case !rowID.MatchString(f[0]):
			return fmt.Errorf("%q is no ID", f[0])
		case seen[f[0]]:
			return fmt.Errorf("%s stands here twice", f[0])
		case len(sections) == 0:
			return fmt.Errorf("%s stands before the first section", f[0])
		}
		seen[f[0]] = true
		s := &sections[len(sections)-1]
		s.rows = append(s.rows, row{id: f[0], title: f[1], needs: strings.Join(f[2:], "")})
		return nil
	})
	return sections, err
}

// critestSpecs reads lines of ID and spec, parted by a tab.
func critestSpecs(file string) (proofs []proof, err error) {
	err = eachLine(file, func(line string) error {
		id, spec, ok := strings.Cut(line, "\t")
		if !ok || spec == "" {
			return fmt.Errorf("want an ID and a spec, parted by a tab: %q", line)
		}
		proofs = append(proofs, proof{id: id, test: "critest", at: file})
		return nil
	})
	return proofs, err
}

// eachLine calls do with each line that is neither empty nor a comment; errors get file and line.
func eachLine(file string, do func(string) error) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for i, line := range strings.Split(string(b), "\n") {
		if line == "" || strings.HasPrefix(line, "#-") {
			continue
		}
		if err := do(line); err != nil {
			return fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
	}
	return nil
}

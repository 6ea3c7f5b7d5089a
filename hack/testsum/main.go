// Command testsum runs the project's test suites one after the other and counts. It shows the output of what failed,
// then a line for each suite, and last of all `N passed, N failed`. It fails when anything did, or when a suite
// named was not run at all.
//
//	testsum [-cache DIR] [-run REGEXP] [-v] [-race] unit|blackbox|critest...
package main

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// suite is one or more `go test` runs that are counted together.
type suite struct {
	name string
	runs []run
}

// run is one `go test -json`: the module's directory and the arguments after the common ones.
type run struct {
	dir  string
	args []string
}

func main() {
	cache := flag.String("cache", ".cache", "`directory` of the tools and images that make built")
	match := flag.String("run", "", "run only the tests that match this `regexp`")
	verbose := flag.Bool("v", false, "show every test's name and time")
	race := flag.Bool("race", false, "with the race detector")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	common := []string{"test", "-json", "-count=1", "-timeout=30m"}
	if *race {
		common = append(common, "-race")
	}

	all, err := suites(*cache, *match)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(2)
	}
	var sum tally
	var lines []string
	for _, name := range flag.Args() {
		s, ok := all[name]
		if !ok {
			fmt.Fprintf(os.Stderr, "testsum: no such suite: %s\n", name)
			os.Exit(2)
		}
		start := time.Now()
		var t tally
		for _, r := range s.runs {
			t.add(goTest(ctx, r, common, *verbose))
		}
		if *match == "" && t.passed == 0 && t.failed == 0 {
			fmt.Printf("FAIL %s: no test ran\n", name)
			t.failed++
		}
		sum.add(t)
		lines = append(lines, fmt.Sprintf("%-9s %4d passed  %3d failed  %3d skipped  %4.0f s", name, t.passed, t.failed, t.skipped, time.Since(start).Seconds()))
	}
	fmt.Println()
	for _, l := range lines {
		fmt.Println(l)
	}
	fmt.Printf("\n%d passed, %d failed\n", sum.passed, sum.failed)
	if sum.failed > 0 || ctx.Err() != nil {
		os.Exit(1)
	}
}

// suites are the project's, limited to what matches; the working directory is its root.
func suites(cache, match string) (map[string]suite, error) {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return nil, err
	}
	bin, err := filepath.Abs("bin")
	if err != nil {
		return nil, err
	}
	nested, err := nestedModules(".")
	if err != nil {
		return nil, err
	}
	only := "-run=" + match
	unit := suite{name: "unit", runs: []run{{dir: ".", args: []string{only, "./cmd/...", "./pkg/...", "./hack/...", "./test/images/..."}}}}
	for _, dir := range nested {
		unit.runs = append(unit.runs, run{dir: dir, args: []string{only, "-tags=libseccomp", "./..."}})
	}
	at := []string{"-args", "-bin", bin, "-cache", cache}
	black := suite{name: "blackbox"}
	for _, dir := range []string{"./test/blackbox", "./test/bench"} { // one after the other
		black.runs = append(black.runs, run{dir: ".", args: append([]string{only, dir}, at...)})
	}
	cri := suite{name: "critest", runs: []run{{dir: ".", args: append(append([]string{"./test/critest"}, at...), "-focus", match)}}}
	return map[string]suite{unit.name: unit, black.name: black, cri.name: cri}, nil
}

// nestedModules finds the modules below root that have tests.
func nestedModules(root string) (dirs []string, err error) {
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != root && strings.HasPrefix(d.Name(), "."):
			return filepath.SkipDir
		case d.Name() == "go.mod" && filepath.Dir(p) != root:
			if tests, _ := filepath.Glob(filepath.Join(filepath.Dir(p), "*_test.go")); len(tests) > 0 {
				dirs = append(dirs, filepath.Dir(p))
			}
		}
		return nil
	})
	return dirs, err
}

// goTest runs `go test -json` and reads its events. A run that cannot even start counts as one failure.
func goTest(ctx context.Context, r run, common []string, verbose bool) tally {
	cmd := exec.CommandContext(ctx, "go", append(common[:len(common):len(common)], r.args...)...)
	cmd.Dir = r.dir
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute // for the tests to clean up
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Printf("FAIL %v: %v\n", cmd, err)
		return tally{failed: 1}
	}
	rd := reader{out: os.Stdout, verbose: verbose}
	t := rd.read(out)
	if err := cmd.Wait(); err != nil && t.failed == 0 {
		fmt.Printf("FAIL %v: %v\n", cmd, err)
		t.failed++
	}
	return t
}

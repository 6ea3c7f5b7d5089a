// Command images builds the container images of the tests from Debian packages and the sources in this directory,
// and serves them as a registry. See README.md for what is in them and why.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/criserver/criserver/test/images/oci"
)

const usage = `usage:
  images build [-out DIR] [-cache DIR] SET...     sets: critest, edge, tool, bench
  images list  [-out DIR]
  images serve [-out DIR] [-addr HOST:PORT]
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		return flag.ErrHelp
	}
	fs := flag.NewFlagSet("images "+args[0], flag.ContinueOnError)
	out := fs.String("out", ".cache/images", "`directory` of the OCI layouts, one for each set")
	cache := fs.String("cache", ".cache/images-src", "`directory` for packages and binaries")
	addr := fs.String("addr", "127.0.0.1:5000", "`address` to serve on")
	if err := fs.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "build":
		return build(*out, *cache, fs.Args())
	case "list":
		return list(*out)
	case "serve":
		return serve(*out, *addr)
	}
	fmt.Fprint(os.Stderr, usage)
	return fmt.Errorf("no such command: %s", args[0])
}

// catalogues fill a layout each.
var catalogues = map[string]func(*builder) error{"critest": critest, "edge": edge, "tool": tool, "bench": bench}

func build(out, cache string, sets []string) error {
	for _, set := range sets {
		fill, ok := catalogues[set]
		if !ok {
			return fmt.Errorf("no such set: %s", set)
		}
		start := time.Now()
		debian, err := openDebian(cache)
		if err != nil {
			return err
		}
		layout, err := oci.Create(filepath.Join(out, set))
		if err != nil {
			return err
		}
		if err := fill(&builder{Layout: layout, debian: debian}); err != nil {
			return fmt.Errorf("%s: %w", set, err)
		}
		if err := os.WriteFile(filepath.Join(out, set, "packages.lock"), []byte(debian.lock()), 0o644); err != nil {
			return err
		}
		if err := layout.Finish(); err != nil {
			return fmt.Errorf("%s: %w", set, err)
		}
		fmt.Printf("%s: %d references in %.0f s\n", set, len(layout.Refs()), time.Since(start).Seconds())
	}
	return nil
}

// open opens every layout below out.
func open(out string) ([]*oci.Layout, error) {
	found, err := filepath.Glob(filepath.Join(out, "*", "index.json"))
	if err != nil {
		return nil, err
	}
	var layouts []*oci.Layout
	for _, index := range found {
		l, err := oci.Open(filepath.Dir(index))
		if err != nil {
			return nil, err
		}
		layouts = append(layouts, l)
	}
	if len(layouts) == 0 {
		return nil, fmt.Errorf("nothing was built in %s", out)
	}
	return layouts, nil
}

func list(out string) error {
	layouts, err := open(out)
	if err != nil {
		return err
	}
	for _, l := range layouts {
		for _, ref := range l.Refs() {
			d, _ := l.Lookup(ref)
			fmt.Printf("%-75s %s\n", ref, d.Digest)
		}
	}
	return nil
}

func serve(out, addr string) error {
	layouts, err := open(out)
	if err != nil {
		return err
	}
	fmt.Printf("serving %s on http://%s\n", out, addr)
	return http.ListenAndServe(addr, oci.NewRegistry(layouts...))
}

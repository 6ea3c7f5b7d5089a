package main

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/criserver/criserver/test/images/oci"
)

//go:embed csrc/*.c
var sources embed.FS

// debian finds packages with apt, in a directory of its own and with an empty package status: what a package needs
// does not depend on what this machine has installed, and nothing on the machine is changed.
type debian struct {
	dir  string
	opts []string
	used map[string]string // package -> version
}

func openDebian(cache string) (*debian, error) {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return nil, err
	}
	d := &debian{dir: cache, used: map[string]string{}}
	apt := filepath.Join(cache, "apt")
	for _, p := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(apt, p), 0o755); err != nil {
			return nil, err
		}
	}
	list, err := withSources("/etc/apt")
	if err != nil {
		return nil, err
	}
	err = errors.Join(os.WriteFile(apt+"/debian.sources", []byte(list), 0o644), os.WriteFile(apt+"/state/status", nil, 0o644))
	if err != nil {
		return nil, err
	}
	for _, o := range []string{
		"Dir::Etc::sourcelist=" + apt + "/debian.sources", "Dir::Etc::sourceparts=/dev/null", "Dir::Etc::preferencesparts=/dev/null",
		"Dir::State=" + apt + "/state", "Dir::State::status=" + apt + "/state/status", "Dir::Cache=" + apt + "/cache",
		"APT::Sandbox::User=root", "APT::Install-Recommends=false", "APT::Keep-Downloaded-Packages=true",
	} {
		d.opts = append(d.opts, "-o", o)
	}
	if known, _ := filepath.Glob(apt + "/state/lists/*Packages*"); len(known) == 0 {
		_, err = d.apt("", "update")
	}
	return d, err
}

// withSources are the machine's own Debian archives, as a deb822 list that asks for source packages too.
func withSources(etc string) (string, error) {
	oneLine, _ := filepath.Glob(etc + "/sources.list.d/*.list")
	stanzas, _ := filepath.Glob(etc + "/sources.list.d/*.sources")
	var b strings.Builder
	entry := func(uris, suites, components, signedBy string) {
		if !slices.Contains(strings.Fields(components), "main") {
			return // somebody else's archive
		}
		fmt.Fprintf(&b, "Types: deb deb-src\nURIs: %s\nSuites: %s\nComponents: main\n", uris, suites)
		if signedBy != "" {
			fmt.Fprintf(&b, "Signed-By: %s\n", signedBy)
		}
		b.WriteByte('\n')
	}
	for _, f := range append(oneLine, etc+"/sources.list") {
		text, _ := os.ReadFile(f)
		for _, m := range debLine.FindAllStringSubmatch(string(text), -1) {
			signed := signedOption.FindStringSubmatch(m[1])
			entry(m[2], m[3], m[4], strings.Join(signed[min(1, len(signed)):], ""))
		}
	}
	for _, f := range stanzas {
		text, err := os.ReadFile(f)
		if err != nil {
			return "", err
		}
		for stanza := range strings.SplitSeq(string(text), "\n\n") {
			field := map[string]string{}
			for line := range strings.SplitSeq(stanza, "\n") {
				if k, v, ok := strings.Cut(line, ": "); ok && !strings.HasPrefix(line, "#") {
					field[strings.ToLower(k)] = strings.TrimSpace(v)
				}
			}
			if strings.Contains(field["types"], "deb") && field["enabled"] != "no" && isPath(field["signed-by"]) {
				entry(field["uris"], field["suites"], field["components"], field["signed-by"])
			}
		}
	}
	if b.Len() == 0 {
		return "", fmt.Errorf("no Debian archive is named below %s", etc)
	}
	return b.String(), nil
}

var (
	debLine      = regexp.MustCompile(`(?m)^deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.*)$`)
	signedOption = regexp.MustCompile(`signed-by=(\S+)`)
)

// isPath tells a key's path, or none, from a key that stands in the list itself over many lines.
func isPath(s string) bool { return s == "" || strings.HasPrefix(s, "/") }

// command runs a program and returns what it printed.
func command(dir, name string, args ...string) ([]byte, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, stderr.String())
	}
	return out, nil
}

func (d *debian) apt(dir string, args ...string) ([]byte, error) {
	return command(dir, "apt-get", append(slices.Clone(d.opts), append([]string{"-q", "-y"}, args...)...)...)
}

// packages are .deb files.
type packages struct {
	files []string
	names []string
}

var instLine = regexp.MustCompile(`(?m)^Inst (\S+) \((\S+) .*\[(\S+)\]\)`)

// closure downloads packages with all that they need, but for what is in without.
func (d *debian) closure(without packages, names ...string) (packages, error) {
	if _, err := d.apt("", append([]string{"--download-only", "install"}, names...)...); err != nil {
		return packages{}, err
	}
	plan, err := d.apt("", append([]string{"--simulate", "install"}, names...)...)
	if err != nil {
		return packages{}, err
	}
	var p packages
	for _, m := range instLine.FindAllStringSubmatch(string(plan), -1) {
		name, version, arch := strings.TrimSuffix(m[1], ":"+m[3]), m[2], m[3]
		if slices.Contains(without.names, name) {
			continue
		}
		d.used[name] = version
		p.names = append(p.names, name)
		p.files = append(p.files, filepath.Join(d.dir, "apt/cache/archives", fmt.Sprintf("%s_%s_%s.deb", name, strings.ReplaceAll(version, ":", "%3a"), arch)))
	}
	slices.Sort(p.files)
	slices.Sort(p.names)
	if len(p.files) == 0 {
		return p, fmt.Errorf("apt finds nothing for %v", names)
	}
	return p, nil
}

func (p packages) plus(q packages) packages {
	return packages{files: slices.Concat(p.files, q.files), names: slices.Concat(p.names, q.names)}
}

// addTo writes the packages' files into a layer, without their documentation if slim.
func (p packages) addTo(t *oci.Tree, slim bool) {
	for _, f := range p.files {
		cmd := exec.Command("dpkg-deb", "--fsys-tarfile", f)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fail(err)
			return
		}
		keep := func(name string) bool { return !slim || !documentation.MatchString(name) }
		t.Tar(out, keep)
		_, _ = io.Copy(io.Discard, out) // padding behind the end of the archive
		if err := cmd.Wait(); err != nil {
			t.Fail(fmt.Errorf("%s: %w", f, err))
		}
	}
}

var documentation = regexp.MustCompile(`^usr/(share/(doc|man|info|locale|lintian|bug|gcc)|lib/[^/]*-linux-gnu/gconv)/`)

// member reads one file of the package with that name.
func (p packages) member(pkg, path string) ([]byte, error) {
	for _, f := range p.files {
		if strings.HasPrefix(filepath.Base(f), pkg+"_") {
			return command("", "bash", "-o", "pipefail", "-c", `dpkg-deb --fsys-tarfile "$1" | tar -xO "$2"`, "bash", f, path)
		}
	}
	return nil, fmt.Errorf("package %s is not among them", pkg)
}

// busybox builds a static busybox from Debian's source package with upstream's default configuration. Debian's own
// binary will not do: its shell runs applets without an exec, which the tests of exec and of masked paths look at,
// and it lacks ipcs, pgrep and adduser.
func (d *debian) busybox() (string, error) {
	out := filepath.Join(d.dir, "busybox")
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	work, err := os.MkdirTemp(d.dir, "busybox-src-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if _, err := d.apt(work, "source", "--download-only", "busybox"); err != nil {
		return "", err
	}
	_, err = command(work, "bash", "-euc", `
		tar xf busybox_*.orig.tar.*
		cd busybox-*/
		export KCONFIG_NOTIMESTAMP=1 SOURCE_DATE_EPOCH=1767225600
		make -s defconfig >/dev/null
		sed -i -e 's/# CONFIG_STATIC is not set/CONFIG_STATIC=y/' -e 's/^CONFIG_TC=y/# CONFIG_TC is not set/' .config
		make -s -j"$(nproc)" busybox >make.log 2>&1 || { tail make.log >&2; exit 1; }
		strip busybox
		mv busybox "$1"`, "bash", out)
	return out, err
}

// cc compiles one of the C programs of csrc, static.
func (d *debian) cc(name string) (string, error) {
	src, err := sources.ReadFile("csrc/" + name + ".c")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(src)
	out := filepath.Join(d.dir, fmt.Sprintf("%s-%x", name, sum[:4]))
	if _, err := os.Stat(out); err == nil {
		return out, nil
	}
	if err := os.WriteFile(out+".c", src, 0o644); err != nil {
		return "", err
	}
	_, err = command("", "gcc", "-Os", "-static", "-s", "-Wall", "-Wl,--build-id=none", "-o", out, out+".c")
	return out, err
}

// lock names the packages that were used, with their versions.
func (d *debian) lock() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(d.used)) {
		fmt.Fprintf(&b, "%s %s\n", name, d.used[name])
	}
	return b.String()
}

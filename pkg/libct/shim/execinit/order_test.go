package execinit

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What the program has no room for is refused, and what it has room for just fits.
func TestEncodeLimits(t *testing.T) {
	empty, err := (&Order{Args: []string{""}}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	room := maxOrder - len(empty)
	for name, c := range map[string]struct {
		order Order
		ok    bool
	}{
		"all the room":   {Order{Args: []string{""}, Cwd: strings.Repeat("x", room)}, true},
		"a byte more":    {Order{Args: []string{""}, Cwd: strings.Repeat("x", room+1)}, false},
		"many arguments": {Order{Args: slices.Repeat([]string{"/"}, maxStrings)}, false},
		"zero":           {Order{Args: []string{"a\x00b"}}, false},
		"odd filter":     {Order{Args: []string{"a"}, Filter: make([]byte, instructionSize+1)}, false},
	} {
		if b, err := c.order.Encode(); (err == nil) != c.ok || (err != nil && !errors.Is(err, ErrTooLarge)) {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
}

func TestCandidates(t *testing.T) {
	for _, c := range []struct {
		command string
		env     []string
		want    []string
	}{
		{"ls", []string{"PATH=/bin::x/"}, []string{"/bin/ls", "ls", "x/ls"}},
		{"./ls", []string{"PATH=/bin"}, []string{"./ls"}},
		{"ls", []string{"PATH="}, nil},
		{"ls", nil, nil},
	} {
		o := Order{Args: []string{c.command}, Env: c.env}
		if got := o.candidates(); !slices.Equal(got, c.want) {
			t.Errorf("%s with %q: %q, not %q", c.command, c.env, got, c.want)
		}
	}
}

// Reports that tell of no failure are none, and the others name the field at fault.
func TestErr(t *testing.T) {
	o := Order{Args: []string{"x"}, Cwd: "/w", Rlimits: []Rlimit{{Kind: 7}}}
	report := func(kind uint32, what string) (r Report) {
		r.Kind, r.Value = kind, int32(unix.EPERM)
		copy(r.What[:], what)
		return r
	}
	for _, c := range []struct {
		report Report
		want   string
	}{
		{report(Started, ""), ""},
		{report(Ready, ""), ""},
		{report(failed, "process.cwd"), "process.cwd /w: operation not permitted"},
		{report(failed, "process.rlimits"), "process.rlimits: set limit 7: operation not permitted"},
		{report(noCommand, "path"), `exec: "x": executable file not found in $PATH`},
	} {
		got := ""
		err := o.Err(c.report)
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%+v: %q, not %q", c.report, got, c.want)
		}
		var not *exec.Error
		if c.report.Kind == noCommand && !errors.As(err, &not) {
			t.Errorf("%v is no error of os/exec", err)
		}
	}
}

// Package apparmor has the AppArmor profile of containers that ask for the runtime's default, or for none, and loads it.
//
// The profile is default.profile, in the language of apparmor.d(5); the kernel's own is binary and made by
// apparmor_parser(8), which is why that must be on the node.
package apparmor

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/containerd/errdefs"
)

// Default is the name of the profile that LoadDefault loads.
const Default = "criserver-default"

// Profiles lists the profiles that the kernel has, one "name (mode)" a line.
const Profiles = "/sys/kernel/security/apparmor/profiles"

// parserLimit is far more than the parser takes, on any machine.
const parserLimit = time.Minute

//go:embed default.profile
var defaultProfile []byte

// LoadDefault has the kernel take the profile, in the place of the one that it may have under its name, by which
// processes that have this are confined at once.
func LoadDefault(ctx context.Context) error {
	return parse(ctx, "--replace", "--skip-cache")
}

// parse gives the profile to the parser.
func parse(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, parserLimit)
	defer cancel()
	parser := exec.CommandContext(ctx, "apparmor_parser", args...)
	parser.Stdin = bytes.NewReader(defaultProfile)
	out, err := parser.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("apparmor_parser is not in $PATH: install it (often the package apparmor) and restart: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("load the AppArmor profile %s: apparmor_parser: %w: %.500s", Default, err, bytes.TrimSpace(out))
	}
	return nil
}

// Loaded says whether the kernel has a profile.
func Loaded(name string) (bool, error) {
	list, err := os.ReadFile(Profiles)
	if err != nil {
		return false, fmt.Errorf("list the AppArmor profiles: %w", err)
	}
	return Listed(list, name), nil
}

// Listed says whether a profile is in a list, which is the content of Profiles.
func Listed(list []byte, name string) bool {
	for line := range bytes.Lines(list) {
		if i := bytes.LastIndex(line, []byte(" (")); i > 0 && string(line[:i]) == name {
			return true
		}
	}
	return false
}

package shim

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"
)

// The environment in which the shim executes itself.
const (
	envBuild    = "CRISERVER_SHIM_BUILD"    // Build of the file that the running copy was made of
	envHandover = "CRISERVER_SHIM_HANDOVER" // descriptor of the state that is handed over
)

// seal makes the shim run from a sealed copy of its binary in memory, so that no
// container can reach the file through /proc/PID/exe (CVE-2019-5736).
// libcontainer would else make such a copy for each process that it starts. It
// returns the build, after it has executed the copy if this is not it.
func seal() (string, error) {
	if build := os.Getenv(envBuild); build != "" && exeseal.IsSelfExeCloned() {
		return build, nil
	}
	// What else the daemon's parents have left open is not for us.
	if err := unix.CloseRange(ListenFD+1, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return "", fmt.Errorf("close_range: %w", err)
	}
	binary, build, err := sealed("/proc/self/exe")
	if err != nil {
		return "", err
	}
	defer binary.Close()
	err = unix.Exec(fdPath(binary), os.Args, environ(envBuild+"="+build))
	return "", fmt.Errorf("execute sealed copy: %w", err)
}

// sealed returns a sealed copy of a binary and its build, the SHA-256 of the file.
func sealed(path string) (*os.File, string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, "", err
	}
	hash := sha256.New()
	binary, err := exeseal.CloneBinary(io.TeeReader(f, hash), st.Size(), "criserver-shim", "/")
	if err != nil {
		return nil, "", fmt.Errorf("seal %s: %w", path, err)
	}
	return binary, hex.EncodeToString(hash.Sum(nil)), nil
}

func fdPath(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// environ is the environment for the shim's next program: ours, without what is
// meant for the present one or for libcontainer's children, and with more.
func environ(more ...string) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == envBuild || name == envHandover || name == envMaxProcs
	})
	return append(env, more...)
}

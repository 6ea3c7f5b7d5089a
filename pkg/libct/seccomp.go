package libct

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/seccomp/libseccomp-golang"
)

// compiledProfiles remembers the program of each profile: nodes have few, and all
// containers with the same one share it.
var compiledProfiles = programCache{programs: make(map[[sha256.Size]byte][]byte)}

// maxPrograms bounds the cache; a program has some kilobytes.
const maxPrograms = 256

type programCache struct {
	mu       sync.Mutex
	programs map[[sha256.Size]byte][]byte
}

// compile returns the program of a profile.
func (c *programCache) compile(profile *specs.LinuxSeccomp) ([]byte, error) {
	b, err := json.Marshal(profile)
	if err != nil {
		return nil, err
	}
	key := sha256.Sum256(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if program, ok := c.programs[key]; ok {
		return program, nil
	}
	program, err := seccomp.Compile(profile)
	if err != nil {
		return nil, err
	}
	if len(c.programs) >= maxPrograms {
		clear(c.programs)
	}
	c.programs[key] = program
	return program, nil
}

// withCompiledSeccomp returns the spec with its seccomp profile compiled, so that
// neither the container's start nor any exec in it has to do that. Without a
// profile it is the spec itself.
func withCompiledSeccomp(spec *specs.Spec) (*specs.Spec, error) {
	if spec.Linux == nil || spec.Linux.Seccomp == nil {
		return spec, nil
	}
	program, err := compiledProfiles.compile(spec.Linux.Seccomp)
	if err != nil {
		return nil, fmt.Errorf("linux.seccomp: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	linux := *spec.Linux
	linux.Seccomp = seccomp.Precompiled(program, linux.Seccomp.Flags)
	compiled := *spec
	compiled.Linux = &linux
	return &compiled, nil
}

package sandbox

import (
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Spec is the OCI spec that a container was created with, for people and tools.
func (m *Manager) Spec(id string) (*specs.Spec, error) {
	c, err := m.findContainer(id)
	if err != nil {
		return nil, err
	}
	return m.shim.Spec(c.id)
}

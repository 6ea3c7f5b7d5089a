package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"

	"github.com/criserver/criserver/pkg/cri/spec"
)

// relabel gives the sources of mounts the SELinux label of the container, where the request wants it (CRI:
// Mount.selinux_relabel). Filesystems without labels, and images, stay as they are; directories of the system are refused.
func (b *containerBuild) relabel(ctx context.Context) error {
	want := b.opts.Spec.Linux.MountLabel
	if want == "" {
		return nil
	}
	for i, m := range b.cfg.GetMounts() {
		if !m.GetSelinuxRelabel() || spec.IsImage(m) {
			continue
		}
		source, err := filepath.EvalSymlinks(m.GetHostPath())
		if err == nil {
			err = errors.Join(ctx.Err(), label.Relabel(source, want, false))
		}
		if err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("mounts[%d].selinux_relabel: %w", i, err)
		}
	}
	return nil
}

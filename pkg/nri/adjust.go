package nri

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// adjust changes a spec as plugins want it. The library knows what each change means; see generator for what it builds on. env
// are the variables that plugins left.
func (s *Service) adjust(oci *specs.Spec, a *api.ContainerAdjustment, env []string) error {
	if a == nil {
		return nil
	}
	p := generator{oci}.process()
	// The library appends limits, also to one of the same kind.
	p.Rlimits = without(p.Rlimits, func(old specs.POSIXRlimit) bool {
		return slices.ContainsFunc(a.GetRlimits(), func(l *api.POSIXRlimit) bool { return l.GetType() == old.Type })
	})
	// The library passes on which variables were added, but not that one was removed.
	p.Env = without(p.Env, func(old string) bool {
		return !slices.ContainsFunc(env, func(e string) bool { return variable(e) == variable(old) })
	})
	g := generate.SpecGenerator(generator{oci},
		generate.WithCDIDeviceInjector(s.injectDevices),
		generate.WithResourceChecker(s.fit),
		generate.WithBlockIOResolver(func(class string) (*specs.LinuxBlockIO, error) {
			return nil, fmt.Errorf("block I/O class %.80q: there are no such classes here: %w", class, errdefs.ErrNotImplemented)
		}),
		generate.WithRdtResolver(func(class string) (*specs.LinuxIntelRdt, error) {
			return &specs.LinuxIntelRdt{ClosID: class}, nil // a directory of resctrl(5)
		}))
	if err := g.Adjust(a); err != nil {
		return err
	}
	// The library forgets the number that the default action returns.
	if errno := a.GetLinux().GetSeccompPolicy().GetDefaultErrno(); errno != nil {
		v := uint(errno.GetValue())
		oci.Linux.Seccomp.DefaultErrnoRet = &v
	}
	return nil
}

// variable is the name of NAME=VALUE.
func variable(e string) string {
	name, _, _ := strings.Cut(e, "=")
	return name
}

func (s *Service) injectDevices(oci *specs.Spec, names []string) error {
	if s.o.Devices == nil {
		return fmt.Errorf("CDI devices %v: none are configured: %w", names, errdefs.ErrInvalidArgument)
	}
	return s.o.Devices.Inject(oci, names)
}

// fit leaves out of the resources what this host has not, as it is done with those of a request: see spec.Resources.
func (s *Service) fit(r *specs.LinuxResources) error {
	if r.Memory != nil && !s.o.Host.SwapAccounting {
		r.Memory.Swap = nil // the library sets it beside the limit
	}
	if !s.o.Host.CgroupV2 {
		r.Unified = nil
	}
	return nil
}

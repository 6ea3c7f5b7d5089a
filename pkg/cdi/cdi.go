// Package cdi gives containers the devices that vendors describe in files: the
// Container Device Interface, https://github.com/cncf-tags/container-device-interface.
//
// A device has a fully qualified name, vendor/class=name. Its description, in
// a YAML or JSON file of one of the directories, says what it adds to the OCI spec of a
// container: device nodes, mounts, variables, hooks, groups. Of two directories
// that describe the same device, the later one counts.
//
// The directories are watched: a file that is written, or a directory that is
// made, takes effect with the next container. A file that cannot be used
// matters to those alone that ask for its devices.
package cdi

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// Devices are those that the files describe. It is safe for concurrent use.
type Devices struct {
	cache *cdi.Cache
	dirs  []string
	log   *logrus.Entry
}

// Open reads the directories, of which none need be there, and watches them until Close.
func Open(dirs []string, log *logrus.Entry) (*Devices, error) {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(true))
	if err != nil {
		return nil, fmt.Errorf("cdi.spec_dirs: %w", err)
	}
	return &Devices{cache: cache, dirs: dirs, log: log}, nil
}

// Close ends the watch.
func (d *Devices) Close() error { return d.cache.Configure(cdi.WithAutoRefresh(false)) }

// Inject adds what the named devices bring to a spec. A device that no file describes is ErrInvalidArgument; after an
// error the spec may have changed in part.
func (d *Devices) Inject(s *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	unknown, err := d.cache.InjectDevices(s, names...)
	if len(unknown) > 0 { // the word of a file that was just written may still be on its way: read all anew
		if err := d.cache.Configure(cdi.WithAutoRefresh(true)); err != nil {
			return err
		}
		unknown, err = d.cache.InjectDevices(s, names...)
	}
	broken := d.broken()
	if broken != nil {
		d.log.WithError(broken).Warn("Files that describe devices cannot be used")
	}
	switch {
	case len(unknown) > 0:
		err = fmt.Errorf("no file in %s describes the device %s: %w", strings.Join(d.dirs, ", "), strings.Join(unknown, ", "), errdefs.ErrInvalidArgument)
		if broken != nil {
			err = fmt.Errorf("%w; files that cannot be used: %w", err, broken)
		}
	case err != nil:
		err = fmt.Errorf("devices %s: %w", strings.Join(names, ", "), err)
	}
	return err
}

// broken says in one line which files cannot be used and why.
func (d *Devices) broken() error {
	var all []string
	byPath := d.cache.GetErrors()
	for _, path := range slices.Sorted(maps.Keys(byPath)) {
		if slices.Contains(d.dirs, path) {
			continue // it is not there, or not watched
		}
		for _, err := range byPath[path] {
			text := err.Error()
			if !strings.Contains(text, path) {
				text = path + ": " + text
			}
			all = append(all, text)
		}
	}
	if all == nil {
		return nil
	}
	return errors.New(strings.Join(all, "; "))
}

package spec

import (
	"maps"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// cdiAnnotation begins the keys of annotations of a container that name CDI devices: the older form, by which the kubelet
// passes on what a device plugin answered. It alone makes the annotations of containers.
const cdiAnnotation = "cdi.k8s.io/"

// CDIDevices are the fully qualified names (vendor/class=name) of the CDI devices that a container asks for, in its
// CDI_devices first and then in its annotations, each once. They are not part of Build: what they bring stands in files.
func CDIDevices(cfg *runtimeapi.ContainerConfig) ([]string, error) {
	var names []string
	seen := map[string]bool{}
	add := func(field, name string) error {
		if err := checkText(field, name, maxName); err != nil {
			return err
		}
		if !parser.IsQualifiedName(name) {
			return invalid(field, "%s is no name of a CDI device, such as \"vendor.example/class=name\"", show(name))
		}
		if !seen[name] {
			names = append(names, name)
		}
		seen[name] = true
		return checkCount(field, len(names))
	}
	if err := checkCount("CDI_devices", len(cfg.GetCDIDevices())); err != nil {
		return nil, err
	}
	for i, d := range cfg.GetCDIDevices() {
		if err := add(item("CDI_devices", i)+".name", d.GetName()); err != nil {
			return nil, err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(cfg.GetAnnotations())) {
		if !strings.HasPrefix(key, cdiAnnotation) {
			continue
		}
		for name := range strings.SplitSeq(cfg.GetAnnotations()[key], ",") {
			if err := add("annotations: "+show(key), name); err != nil {
				return nil, err
			}
		}
	}
	return names, nil
}

// cdi judges the names; whether there are such devices is known when they are injected.
func (c *check) cdi() error {
	_, err := CDIDevices(c.cfg)
	return err
}

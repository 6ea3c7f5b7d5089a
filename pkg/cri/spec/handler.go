package spec

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/ulimit"
)

// Handler is what the pods of a runtime handler get beside the Defaults.
type Handler struct {
	Ulimits         []specs.POSIXRlimit // each in the place of that of Defaults
	WritableCgroups bool                // containers may make cgroups below their own
	// Annotations are those below AnnotationPrefix that a pod may use. What is not here has no effect: whoever may write
	// annotations is not always whoever may decide about the node.
	Annotations []string
}

// AnnotationPrefix begins the annotations of pods that a Handler may allow.
const AnnotationPrefix = "criserver.github.io/"

const (
	ulimitsAnnotation = "ulimits"          // "nofile=1024:4096,core=0", of all containers; see ulimits for those of one
	cgroupsAnnotation = "writable-cgroups" // "true" or "false"
)

// annotation gives the value of an annotation if there is one that counts.
func (h Handler) annotation(pod *runtimeapi.PodSandboxConfig, name string) (string, bool) {
	if !slices.Contains(h.Annotations, name) {
		return "", false
	}
	v, ok := pod.GetAnnotations()[AnnotationPrefix+name]
	return v, ok
}

// CheckPod refuses a pod whose annotations have no meaning, or that wants what this host has not.
func (h Handler) CheckPod(pod *runtimeapi.PodSandboxConfig, host Host) error {
	writable, err := h.writableCgroups(pod)
	if err != nil {
		return err
	}
	if writable && !host.CgroupV2 {
		return invalid("annotations", "writable cgroups, asked for by annotation or runtime handler, need cgroup v2, which this host has not")
	}
	if _, err := h.ulimits(pod, ""); err != nil {
		return err
	}
	if slices.Contains(h.Annotations, ulimitsAnnotation) {
		for key := range pod.GetAnnotations() {
			if name, ok := strings.CutPrefix(key, ulimitsAnnotation+"."+AnnotationPrefix); ok {
				if _, err := h.ulimits(pod, name); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (h Handler) writableCgroups(pod *runtimeapi.PodSandboxConfig) (bool, error) {
	v, ok := h.annotation(pod, cgroupsAnnotation)
	switch {
	case !ok:
		return h.WritableCgroups, nil
	case v != "true" && v != "false":
		return false, invalid("annotations", "%s%s is %s, neither true nor false", AnnotationPrefix, cgroupsAnnotation, show(v))
	}
	return v == "true", nil
}

// ulimits are those of the handler, of the pod's annotation, and of that for one container, "ulimits.criserver.github.io/NAME".
func (h Handler) ulimits(pod *runtimeapi.PodSandboxConfig, container string) ([]specs.POSIXRlimit, error) {
	limits := h.Ulimits
	if !slices.Contains(h.Annotations, ulimitsAnnotation) {
		return limits, nil
	}
	for _, key := range []string{AnnotationPrefix + ulimitsAnnotation, ulimitsAnnotation + "." + AnnotationPrefix + container} {
		v, ok := pod.GetAnnotations()[key]
		if !ok {
			continue
		}
		over, err := ulimit.Parse(strings.Split(v, ","))
		if err != nil {
			return nil, invalid("annotations", "%s: %v", show(key), err)
		}
		limits = ulimit.Merge(limits, over)
	}
	return limits, nil
}

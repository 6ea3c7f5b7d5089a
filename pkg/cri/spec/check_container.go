package spec

import (
	"path"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// check judges the request for one container by itself: without the image and without looking at the host.
type check struct {
	pod *runtimeapi.PodSandboxConfig
	cfg *runtimeapi.ContainerConfig
	sc  *runtimeapi.LinuxContainerSecurityContext
}

// CheckContainer refuses a container that cannot be honoured, before anything is made for it. pod is the configuration of
// its sandbox.
func CheckContainer(pod *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) error {
	if cfg == nil {
		return invalid("config", "is missing")
	}
	c := check{pod: pod, cfg: cfg, sc: cfg.GetLinux().GetSecurityContext()}
	for _, step := range []func() error{
		c.metadata, c.logPath, c.command, c.user, c.capabilities, c.namespaces, c.confinement, c.mounts, c.devices, c.cdi, c.resources,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return checkStopSignal(cfg.GetStopSignal())
}

func (c *check) metadata() error {
	if c.cfg.GetMetadata().GetName() == "" {
		return invalid("metadata.name", "is missing")
	}
	if err := checkText("metadata.name", c.cfg.GetMetadata().GetName(), maxName); err != nil {
		return err
	}
	if c.cfg.GetImage().GetImage() == "" {
		return invalid("image.image", "is missing")
	}
	if err := checkText("image.image", c.cfg.GetImage().GetImage(), maxPath); err != nil {
		return err
	}
	if err := checkText("image.user_specified_image", c.cfg.GetImage().GetUserSpecifiedImage(), maxPath); err != nil {
		return err
	}
	if err := checkMap("labels", c.cfg.GetLabels()); err != nil {
		return err
	}
	return checkMap("annotations", c.cfg.GetAnnotations())
}

// logPath must stay within the pod's log directory. Empty means no log.
func (c *check) logPath() error {
	p := c.cfg.GetLogPath()
	if p == "" {
		return nil
	}
	if path.IsAbs(p) {
		return invalid("log_path", "%s is not relative to the log_directory of the pod", show(p))
	}
	if err := checkPath("log_path", p); err != nil {
		return err
	}
	if err := checkText("log_path", p, maxPath-1); err != nil {
		return err
	}
	if path.Clean(p) == "." || p[len(p)-1] == '/' {
		return invalid("log_path", "%s names no file", show(p))
	}
	return nil
}

func (c *check) user() error {
	sc := c.sc
	switch {
	case sc.GetRunAsUser() != nil && sc.GetRunAsUsername() != "":
		return invalid("linux.security_context.run_as_username", "cannot be given together with run_as_user")
	case sc.GetRunAsGroup() != nil && sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "":
		return invalid("linux.security_context.run_as_group", "needs run_as_user or run_as_username")
	}
	if err := checkText("linux.security_context.run_as_username", sc.GetRunAsUsername(), maxName); err != nil {
		return err
	}
	return checkIDs(sc.GetRunAsUser(), sc.GetRunAsGroup(), sc.GetSupplementalGroups(), sc.GetSupplementalGroupsPolicy())
}

func (c *check) capabilities() error {
	caps := c.sc.GetCapabilities()
	for _, list := range []struct {
		field string
		names []string
	}{
		{fieldAddCaps, caps.GetAddCapabilities()}, {fieldDropCaps, caps.GetDropCapabilities()}, {fieldAmbientCaps, caps.GetAddAmbientCapabilities()},
	} {
		if err := checkCount(list.field, len(list.names)); err != nil {
			return err
		}
		if _, _, err := parseCaps(list.field, list.names); err != nil {
			return err
		}
	}
	return nil
}

func (c *check) resources() error {
	if r := c.cfg.GetLinux().GetResources(); r != nil {
		return CheckResources(r)
	}
	return nil
}

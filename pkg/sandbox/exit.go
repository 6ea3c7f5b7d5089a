package sandbox

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/criserver/criserver/pkg/libct"
	"github.com/criserver/criserver/pkg/libct/wire"
)

// Reasons of an exit, as the kubelet and its users know them.
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
	ReasonUnknown    = "Unknown"
)

const (
	startErrorCode = 128 // of a command that could not be executed
	unknownCode    = 255 // of an exit that no one can know
)

// exit is how a container ended, in the words of its status.
type exit struct {
	at      time.Time
	code    int32
	unknown bool
	reason  string
	message string
}

func exitOf(e wire.Exit) exit {
	x := exit{at: e.At.Round(0), code: int32(e.Code), unknown: e.Unknown}
	switch {
	case e.StartErr != "":
		return startFailed(&libct.StartError{Reason: e.StartErr})
	case e.Unknown:
		x.code, x.reason = unknownCode, ReasonUnknown
		x.message = "the process ended while nobody could see how"
	case e.OOMKilled:
		x.reason = ReasonOOMKilled
	case e.Code == 0:
		x.reason = ReasonCompleted
	default:
		x.reason = ReasonError
	}
	return x
}

func startFailed(err *libct.StartError) exit {
	return exit{at: now(), code: startErrorCode, reason: ReasonStartError, message: err.Reason}
}

// lost is the exit of a container that an earlier boot ended, or that the shim knows nothing of.
func lost(why string) exit {
	return exit{at: now(), code: unknownCode, unknown: true, reason: ReasonUnknown, message: why}
}

// exited is told of every exit by the shim, at least once, also of pods' inits.
func (m *Manager) exited(id string, e wire.Exit) {
	m.mu.RLock()
	c, p := m.containers[id], m.pods[id]
	m.mu.RUnlock()
	switch {
	case c != nil:
		m.end(c, exitOf(e))
	case p != nil:
		m.initExited(p)
	}
}

// end records an exit; the first one counts.
func (m *Manager) end(c *container, x exit) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.starting {
		c.exit = &x
		return
	}
	if err := m.endLocked(c, x); err != nil {
		m.log.WithError(err).WithField("container", c.id).Error("An exit could not be recorded")
	}
}

// endLocked runs with c.mu held.
func (m *Manager) endLocked(c *container, x exit) error {
	if c.rec.State != ContainerCreated && c.rec.State != ContainerRunning {
		return nil
	}
	if err := m.setContainerStateLocked(c, ContainerExited, func(r *containerRecord) { x.record(r) }); err != nil {
		return err
	}
	close(c.gone)
	endsTotal.WithLabelValues(x.reason).Inc()
	m.containerEnded(c)
	if c.cgroup != nil {
		m.samples.Forget(*c.cgroup)
	}
	m.containerEvent(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, c)
	return nil
}

func (x exit) record(r *containerRecord) {
	r.Pid, r.FinishedAt, r.ExitCode, r.Unknown = 0, x.at, x.code, x.unknown
	r.Reason, r.Message = x.reason, x.message
	if r.FinishedAt.Before(r.StartedAt) {
		r.FinishedAt = r.StartedAt
	}
}

// initExited makes a pod whose init died not ready: nothing can join its PID namespace any more.
func (m *Manager) initExited(p *pod) {
	if p.state() != PodReady {
		return
	}
	m.setPodStopping(p, "its init died")
	m.podEvent(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, p.id)
}

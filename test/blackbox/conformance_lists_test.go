package blackbox

import (
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// collect reads a stream to its end: every message has something in it, and no item comes twice.
func collect[R, T any](t *testing.T, stream grpc.ServerStreamingClient[R], err error, items func(*R) []T, id func(T) string) map[string]T {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]T{}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(items(r)) == 0 {
			t.Error("a message has no items")
		}
		for _, item := range items(r) {
			if _, twice := all[id(item)]; twice {
				t.Errorf("%s comes twice", id(item))
			}
			all[id(item)] = item
		}
	}
}

// fleet is two pods with containers in all states, and what each is called.
type fleet struct {
	web, db                        *pod
	running, created, exited, sole *container
	names                          map[string]string // by ID
}

func newFleet(t *testing.T) *fleet {
	label := func(tier string) func(*runtimeapi.PodSandboxConfig) {
		return func(c *runtimeapi.PodSandboxConfig) { c.Labels = map[string]string{"fleet": "yes", "tier": tier} }
	}
	tag := func(v string) containerTweak {
		return func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"fleet": "yes", "is": v} }
	}
	f := &fleet{web: newPod(t, label("web")), db: newPod(t, label("db"))}
	f.running, f.created = f.web.start(asleep(), tag("running")), f.web.create(asleep(), tag("created"))
	f.exited, f.sole = f.web.start(sh("exit 3"), tag("exited")), f.db.start(asleep(), tag("running"))
	f.exited.ended()
	f.names = map[string]string{f.web.id: "web", f.db.id: "db", f.running.id: "running", f.created.id: "created", f.exited.id: "exited", f.sole.id: "sole"}
	return f
}

// called are the names of the fleet's objects among the IDs, sorted; others are not looked at.
func (f *fleet) called(ids []string) string {
	var names []string
	for _, id := range ids {
		if name := f.names[id]; name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func idsOf[T interface{ GetId() string }](items []T) (ids []string) {
	for _, item := range items {
		ids = append(ids, item.GetId())
	}
	return ids
}

func state(s runtimeapi.ContainerState) *runtimeapi.ContainerStateValue {
	return &runtimeapi.ContainerStateValue{State: s}
}

// Lists and their streams have what the filter says, each once.
// rows, T-26, T-27, D-16, P-029, P-030, D-56, D-211
func TestFilterContainers(t *testing.T) {
	f := newFleet(t)
	const running, created, exited = runtimeapi.ContainerState_CONTAINER_RUNNING, runtimeapi.ContainerState_CONTAINER_CREATED, runtimeapi.ContainerState_CONTAINER_EXITED
	for _, c := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   string
	}{
		{"none", nil, "created exited running sole"},
		{"empty", &runtimeapi.ContainerFilter{}, "created exited running sole"},
		{"ID", &runtimeapi.ContainerFilter{Id: f.exited.id}, "exited"},
		{"start of an ID", &runtimeapi.ContainerFilter{Id: f.exited.id[:13]}, "exited"},
		{"unknown ID", &runtimeapi.ContainerFilter{Id: "no-such"}, ""},
		{"running", &runtimeapi.ContainerFilter{State: state(running)}, "running sole"},
		{"created", &runtimeapi.ContainerFilter{State: state(created)}, "created"},
		{"exited", &runtimeapi.ContainerFilter{State: state(exited)}, "exited"},
		{"pod", &runtimeapi.ContainerFilter{PodSandboxId: f.web.id}, "created exited running"},
		{"start of a pod's ID", &runtimeapi.ContainerFilter{PodSandboxId: f.db.id[:13]}, "sole"},
		{"label", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"is": "running"}}, "running sole"},
		{"all of two labels", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"fleet": "yes", "is": "created"}}, "created"},
		{"one of two labels", &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"fleet": "no", "is": "created"}}, ""},
		{"pod and state", &runtimeapi.ContainerFilter{PodSandboxId: f.web.id, State: state(running)}, "running"},
		{"pod and another's ID", &runtimeapi.ContainerFilter{PodSandboxId: f.web.id, Id: f.sole.id}, ""},
		{"everything", &runtimeapi.ContainerFilter{Id: f.sole.id, PodSandboxId: f.db.id, State: state(running), LabelSelector: f.sole.config.Labels}, "sole"},
	} {
		t.Run(c.name, func(t *testing.T) {
			equal(t, "list", f.called(idsOf(f.web.in(t).containers(c.filter))), c.want)
			if other() {
				return // its kubelets do without streams
			}
			stream, err := n.Runtimes.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{Filter: c.filter})
			all := collect(t, stream, err, (*runtimeapi.StreamContainersResponse).GetContainers, (*runtimeapi.Container).GetId)
			equal(t, "stream", f.called(slices.Collect(maps.Keys(all))), c.want)
		})
	}
}

// rows, T-10, T-11, T-12, T-27, D-16, P-008, D-56, D-211
func TestFilterPods(t *testing.T) {
	f := newFleet(t)
	if _, err := n.Runtimes.StopPodSandbox(f.db.ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: f.db.id}); err != nil {
		t.Fatal(err)
	}
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	notReady := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	for _, c := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   string
	}{
		{"none", nil, "db web"},
		{"empty", &runtimeapi.PodSandboxFilter{}, "db web"},
		{"ID", &runtimeapi.PodSandboxFilter{Id: f.db.id}, "db"},
		{"start of an ID", &runtimeapi.PodSandboxFilter{Id: f.web.id[:13]}, "web"},
		{"unknown ID", &runtimeapi.PodSandboxFilter{Id: "no-such"}, ""},
		{"ready", &runtimeapi.PodSandboxFilter{State: ready}, "web"},
		{"not ready", &runtimeapi.PodSandboxFilter{State: notReady}, "db"},
		{"label", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"fleet": "yes"}}, "db web"},
		{"all of two labels", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"fleet": "yes", "tier": "db"}}, "db"},
		{"one of two labels", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"fleet": "no", "tier": "db"}}, ""},
		{"ID and state", &runtimeapi.PodSandboxFilter{Id: f.db.id, State: ready}, ""},
		{"everything", &runtimeapi.PodSandboxFilter{Id: f.db.id, State: notReady, LabelSelector: f.db.config.Labels}, "db"},
	} {
		t.Run(c.name, func(t *testing.T) {
			equal(t, "list", f.called(idsOf(f.web.in(t).list(c.filter))), c.want)
			if other() {
				return
			}
			stream, err := n.Runtimes.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{Filter: c.filter})
			all := collect(t, stream, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes, (*runtimeapi.PodSandbox).GetId)
			equal(t, "stream", f.called(slices.Collect(maps.Keys(all))), c.want)
		})
	}
}

// Stats are of what runs, by the same filters.
// rows, T-27, P-073, P-074, P-075, P-075a, P-076, P-076b, D-56, D-211
func TestFilterStats(t *testing.T) {
	f := newFleet(t)
	for _, c := range []struct {
		name   string
		filter *runtimeapi.ContainerStatsFilter
		want   string
	}{
		{"none", nil, "running sole"},
		{"ID", &runtimeapi.ContainerStatsFilter{Id: f.running.id}, "running"},
		{"start of an ID", &runtimeapi.ContainerStatsFilter{Id: f.sole.id[:13]}, "sole"},
		{"pod", &runtimeapi.ContainerStatsFilter{PodSandboxId: f.db.id}, "sole"},
		{"start of a pod's ID", &runtimeapi.ContainerStatsFilter{PodSandboxId: f.web.id[:13]}, "running"},
		{"labels", &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"fleet": "yes", "is": "running"}}, "running sole"},
		{"another's label", &runtimeapi.ContainerStatsFilter{LabelSelector: map[string]string{"is": "nothing"}}, ""},
		{"pod and ID", &runtimeapi.ContainerStatsFilter{PodSandboxId: f.db.id, Id: f.sole.id[:13]}, "sole"},
		{"pod and another's ID", &runtimeapi.ContainerStatsFilter{PodSandboxId: f.web.id, Id: f.sole.id}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var ids []string
			for _, s := range f.web.in(t).stats(c.filter) {
				ids = append(ids, s.GetAttributes().GetId())
			}
			equal(t, "list", f.called(ids), c.want)
			if other() {
				return
			}
			stream, err := n.Runtimes.StreamContainerStats(t.Context(), &runtimeapi.StreamContainerStatsRequest{Filter: c.filter})
			all := collect(t, stream, err, (*runtimeapi.StreamContainerStatsResponse).GetContainerStats,
				func(s *runtimeapi.ContainerStats) string { return s.GetAttributes().GetId() })
			equal(t, "stream", f.called(slices.Collect(maps.Keys(all))), c.want)
		})
	}
	for _, c := range []struct {
		name   string
		filter *runtimeapi.PodSandboxStatsFilter
		want   string
	}{
		{"pods", nil, "db web"},
		{"start of a pod's own ID", &runtimeapi.PodSandboxStatsFilter{Id: f.db.id[:13]}, "db"},
		{"labels of a pod", &runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"fleet": "yes", "tier": "web"}}, "web"},
		{"no pod", &runtimeapi.PodSandboxStatsFilter{LabelSelector: map[string]string{"tier": "none"}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := n.Runtimes.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: c.filter})
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, s := range r.Stats {
				ids = append(ids, s.GetAttributes().GetId())
			}
			equal(t, "list", f.called(ids), c.want)
			if other() {
				return
			}
			stream, err := n.Runtimes.StreamPodSandboxStats(t.Context(), &runtimeapi.StreamPodSandboxStatsRequest{Filter: c.filter})
			all := collect(t, stream, err, (*runtimeapi.StreamPodSandboxStatsResponse).GetPodSandboxStats,
				func(s *runtimeapi.PodSandboxStats) string { return s.GetAttributes().GetId() })
			equal(t, "stream", f.called(slices.Collect(maps.Keys(all))), c.want)
		})
	}
}

// Without pods a stream has no message and ends well.
// rows: R-07, T-27
func TestEmptyStream(t *testing.T) {
	ours(t)
	none := &runtimeapi.PodSandboxFilter{Id: "no-such"}
	stream, err := n.Runtimes.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{Filter: none})
	equal(t, "pods", len(collect(t, stream, err, (*runtimeapi.StreamPodSandboxesResponse).GetPodSandboxes, (*runtimeapi.PodSandbox).GetId)), 0)
}

// The start of an ID will do everywhere.
// rows: D-16, P-028
func TestShortIDs(t *testing.T) {
	ours(t)
	p := newPod(t)
	const l = 13
	created, err := n.Runtimes.CreateContainer(p.ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id[:l], SandboxConfig: p.config, Config: containerConfig("short", asleep())})
	if err != nil {
		t.Fatal(err)
	}
	id := created.ContainerId[:l]
	im := imageStatus(t, busybox)
	small := &runtimeapi.LinuxContainerResources{CpuShares: 100}
	for _, c := range []struct {
		call string
		err  error
	}{ // in this order
		{"StartContainer", second(n.Runtimes.StartContainer(p.ctx, &runtimeapi.StartContainerRequest{ContainerId: id}))},
		{"PodSandboxStatus", second(n.Runtimes.PodSandboxStatus(p.ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id[:l]}))},
		{"PortForward", second(n.Runtimes.PortForward(p.ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.id[:l], Port: []int32{80}}))},
		{"PodSandboxStats", second(n.Runtimes.PodSandboxStats(p.ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id[:l]}))},
		{"ContainerStatus", second(n.Runtimes.ContainerStatus(p.ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id}))},
		{"ContainerStats", second(n.Runtimes.ContainerStats(p.ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id}))},
		{"UpdateContainerResources", second(n.Runtimes.UpdateContainerResources(p.ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: small}))},
		{"ExecSync", second(n.Runtimes.ExecSync(p.ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}}))},
		{"Exec", second(n.Runtimes.Exec(p.ctx, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true}))},
		{"Attach", second(n.Runtimes.Attach(p.ctx, &runtimeapi.AttachRequest{ContainerId: id, Stdout: true}))},
		{"ReopenContainerLog", second(n.Runtimes.ReopenContainerLog(p.ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}))},
		{"StopContainer", second(n.Runtimes.StopContainer(p.ctx, &runtimeapi.StopContainerRequest{ContainerId: id}))},
		{"RemoveContainer", second(n.Runtimes.RemoveContainer(p.ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}))},
	} {
		if c.err != nil {
			t.Errorf("%s: %v", c.call, c.err)
		}
	}
	equal(t, "containers that are left", len(p.containers(&runtimeapi.ContainerFilter{PodSandboxId: p.id})), 0)
	equal(t, "image by a short ID", imageStatus(t, strings.TrimPrefix(im.Id, "sha256:")[:l]).GetId(), im.Id)
}

// While containers come and go no list fails.
// rows: T-28, A-21, R-22
func TestListsWhileThingsGo(t *testing.T) {
	p := newPod(t)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, err := p.tryCreate(sh("exit 0"))
			if err == nil {
				err = c.start()
			}
			if err == nil {
				_, err = n.Runtimes.RemoveContainer(p.ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.id})
			}
			if err != nil {
				t.Errorf("a container that comes and goes: %v", err)
				return
			}
		}
	}()
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); {
		p.containers(nil)
		p.stats(nil)
		p.list(nil)
		if _, err := n.Runtimes.ListPodSandboxStats(p.ctx, &runtimeapi.ListPodSandboxStatsRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-done
}

// watch subscribes to events and hands out those of a pod and its containers.
func watch(t *testing.T) <-chan *runtimeapi.ContainerEventResponse {
	t.Helper()
	stream, err := n.Runtimes.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil { // from now on every event comes
		t.Fatal(err)
	}
	events := make(chan *runtimeapi.ContainerEventResponse, 1000)
	go func() {
		defer close(events)
		for {
			e, err := stream.Recv()
			if err != nil {
				return // the test has ended
			}
			events <- e
		}
	}()
	return events
}

// Two readers see the same story of a pod, with the statuses of each moment; a third that does not read holds up nobody.
// rows: R-32, E-01, E-02, E-03, E-04, E-05, E-06, E-07, P-081, P-082, X-20, D-211
func TestEvents(t *testing.T) {
	ours(t)
	stuck, err := n.Runtimes.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	readers := []<-chan *runtimeapi.ContainerEventResponse{watch(t), watch(t)}
	began := time.Now()
	p := newPod(t)
	c := p.start(sh("exit 0"))
	c.ended()
	c.remove()
	p.remove()
	const created, started, stopped, deleted = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
		runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
	want := []struct {
		id   string
		kind runtimeapi.ContainerEventType
	}{{p.id, created}, {p.id, started}, {c.id, created}, {c.id, started}, {c.id, stopped}, {c.id, deleted}, {p.id, stopped}, {p.id, deleted}}
	for _, events := range readers {
		for i, w := range want {
			var e *runtimeapi.ContainerEventResponse
			select {
			case e = <-events:
			case <-time.After(10 * time.Second):
				t.Fatalf("event %d does not come", i)
			}
			if e.ContainerId != w.id || e.ContainerEventType != w.kind {
				t.Fatalf("event %d is %v of %s, want %v of %s", i, e.ContainerEventType, e.ContainerId, w.kind, w.id)
			}
			if at := time.Unix(0, e.CreatedAt); at.Before(began) || at.After(time.Now()) {
				t.Errorf("event %d is of %v", i, at)
			}
			if w.kind == deleted && w.id == p.id {
				continue // the pod is gone
			}
			equal(t, "uid in the status of the pod", e.GetPodSandboxStatus().GetMetadata().GetUid(), p.config.Metadata.Uid)
			if w.id == c.id && w.kind == stopped {
				if len(e.ContainersStatuses) != 1 || e.ContainersStatuses[0].Id != c.id || e.ContainersStatuses[0].State != runtimeapi.ContainerState_CONTAINER_EXITED {
					t.Errorf("statuses in the event of an end: %v", e.ContainersStatuses)
				}
			}
		}
	}
	if _, err := stuck.Recv(); err != nil {
		t.Errorf("a reader that begins late has nothing: %v", err)
	}
}

// The events go on until the daemon ends, and then end with an error that says so.
// rows: E-08
func TestEventsEndWithTheDaemon(t *testing.T) {
	ours(t)
	events := watch(t)
	select {
	case <-events:
		t.Error("the stream ended by itself")
	case <-time.After(300 * time.Millisecond):
	}
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := n.Boot(); err != nil {
		t.Fatal(err)
	}
	select {
	case _, open := <-events:
		equal(t, "the stream is open", open, false)
	case <-time.After(5 * time.Second):
		t.Error("the stream outlived the daemon")
	}
}

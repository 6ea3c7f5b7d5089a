package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

func open(t testing.TB, o Options) (*Telemetry, *bytes.Buffer) {
	t.Helper()
	log, text := logrus.New(), &bytes.Buffer{}
	log.SetOutput(text)
	log.SetLevel(logrus.DebugLevel)
	o.Log = logrus.NewEntry(log)
	tel, err := New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tel.Close(); err != nil {
			t.Error(err)
		}
	})
	return tel, text
}

// shape is what an operation consists of, without times.
func shape(o Operation) (all []string) {
	for _, s := range o.Stages {
		line := strings.Repeat(" ", s.Depth) + s.Name
		if s.Error != "" {
			line += ": " + s.Error
		}
		if s.End.IsZero() {
			line += "..."
		} else if s.End.Before(s.Begin) {
			line += " ended before it began"
		}
		all = append(all, line)
	}
	return all
}

var web = Subject{PodID: "abcdef", Pod: "default/web"}

func TestOperation(t *testing.T) {
	tel, log := open(t, Options{})
	ctx, done := tel.Operation(t.Context(), "RunPodSandbox")
	About(ctx, web)
	inner, end := Stage(ctx, "network")
	_, endInner := Stage(inner, "bridge")
	endInner(errors.New("no bridge"))
	end(fmt.Errorf("nobody waits: %w", context.Canceled))
	Past(ctx, "elsewhere", time.Now().Add(-time.Second), time.Now())

	want := []string{"RunPodSandbox...", " network", "  bridge: no bridge", " elsewhere"}
	for _, pod := range []string{"", "abc", "web", "default/web"} {
		got := tel.timeline.operations(pod)
		if len(got) != 1 {
			t.Fatalf("%q: %v", pod, got)
		}
		if diff := cmp.Diff(want, shape(got[0])); diff != "" {
			t.Errorf("%q: %s", pod, diff)
		}
	}
	if got := tel.timeline.operations("we"); len(got) != 0 {
		t.Errorf("part of a name finds %v", got)
	}
	done(nil)
	want[0] = "RunPodSandbox"
	got := tel.timeline.operations("web")
	if diff := cmp.Diff(want, shape(got[0])); diff != "" {
		t.Error(diff)
	}
	if took := got[0].Stages[3].End.Sub(got[0].Stages[3].Begin); took < time.Second || took > 2*time.Second {
		t.Errorf("a stage of a second took %v", took)
	}
	if !regexp.MustCompile(`msg="RunPodSandbox: network \S+, elsewhere 1s" .*pod=default/web`).MatchString(log.String()) {
		t.Errorf("log: %s", log)
	}
}

// TestWithoutOperation: stages of nothing cost and leave nothing.
func TestWithoutOperation(t *testing.T) {
	tel, _ := open(t, Options{})
	ctx, end := Stage(t.Context(), "alone")
	About(ctx, web)
	end(nil)
	_, done := tel.Operation(t.Context(), "ListPodSandbox") // about no pod
	done(nil)
	if len(tel.timeline.at)+len(tel.timeline.ended)+len(tel.timeline.going) != 0 {
		t.Errorf("left: %+v", tel.timeline)
	}
	if n := testing.AllocsPerRun(100, func() {
		_, end := Stage(context.Background(), "alone")
		end(nil)
	}); n > 8 {
		t.Errorf("a stage of nothing allocates %v times", n)
	}
}

// TestCarry: work that outlives its request is still part of it.
func TestCarry(t *testing.T) {
	tel, _ := open(t, Options{})
	ctx, done := tel.Operation(t.Context(), "RunPodSandbox")
	About(ctx, web)
	done(context.DeadlineExceeded)
	_, end := Stage(Carry(context.Background(), ctx), "late")
	end(nil)
	want := []string{"RunPodSandbox: context deadline exceeded", " late"}
	if diff := cmp.Diff(want, shape(tel.timeline.operations("web")[0])); diff != "" {
		t.Error(diff)
	}
}

// TestBounds: what is kept is bounded, and the oldest goes first.
func TestBounds(t *testing.T) {
	tel, _ := open(t, Options{})
	for i := range maxOperations + 10 {
		ctx, done := tel.Operation(t.Context(), "RunPodSandbox")
		About(ctx, Subject{PodID: fmt.Sprint(i)})
		for range maxStages + 10 {
			_, end := Stage(ctx, "again")
			end(nil)
		}
		done(nil)
	}
	all := tel.timeline.operations("")
	if len(all) != maxOperations || all[0].PodID != "10" || all[len(all)-1].PodID != fmt.Sprint(maxOperations+9) {
		t.Errorf("%d from %s to %s", len(all), all[0].PodID, all[len(all)-1].PodID)
	}
	if n := len(all[0].Stages); n != maxStages {
		t.Errorf("%d stages", n)
	}
	if n := len(tel.timeline.at); n != maxOperations*maxStages {
		t.Errorf("%d stages can be found", n)
	}
}

func TestWrite(t *testing.T) {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	stay := func(name string, depth int, from, to time.Duration) Stay {
		return Stay{Name: name, Depth: depth, Begin: begin.Add(from), End: begin.Add(to)}
	}
	failed := stay("portmap", 2, 2*time.Millisecond, 3*time.Millisecond)
	failed.Error = "no such thing"
	var b strings.Builder
	err := Write(&b, []Operation{{Subject: Subject{Pod: "default/web", Container: "c"}, Stages: []Stay{
		stay("CreateContainer", 0, 0, 10*time.Millisecond), stay("network", 1, time.Millisecond, 4*time.Millisecond), failed,
	}}})
	const want = `2026-01-02 03:04:05.006  CreateContainer  default/web  c
      0.00      10.00  CreateContainer
      1.00       3.00    network
      2.00       1.00      portmap  (no such thing)
`
	if diff := cmp.Diff(want, b.String()); diff != "" || err != nil {
		t.Error(err, diff)
	}
}

// TestHTTP asks as `criserver trace` and Prometheus do.
func TestHTTP(t *testing.T) {
	tel, _ := open(t, Options{})
	ctx, done := tel.Operation(t.Context(), "RunPodSandbox")
	About(ctx, web)
	_, end := Stage(ctx, "network")
	end(nil)
	done(nil)
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: tel.Handler()}}
	srv.Start()
	defer srv.Close()
	got, err := Fetch(t.Context(), socket, "default/web")
	if err != nil || len(got) != 1 || got[0].Subject != web {
		t.Fatal(got, err)
	}
	if diff := cmp.Diff([]string{"RunPodSandbox", " network"}, shape(got[0])); diff != "" {
		t.Error(diff)
	}
	if got, err := Fetch(t.Context(), socket, "a&pod="); err != nil || len(got) != 0 {
		t.Error(got, err)
	}
	if _, err := Fetch(t.Context(), socket+"x", ""); err == nil {
		t.Error("nobody answered")
	}

	only := httptest.NewServer(MetricsHandler())
	defer only.Close()
	for path, want := range map[string]int{"/metrics": http.StatusOK, "/trace": http.StatusNotFound, "/debug/pprof/": http.StatusNotFound} {
		r, err := http.Get(only.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != want {
			t.Errorf("%s: %s, %v", path, r.Status, err)
		}
		if path == "/metrics" && !strings.Contains(string(body), `criserver_stage_duration_seconds_count{rpc="RunPodSandbox",stage="network"}`) {
			t.Errorf("metrics: %s", body)
		}
	}
}

// receiver is a collector of traces.
type receiver struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans []*otlp.Span
}

func (r *receiver) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rs := range req.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			r.spans = append(r.spans, ss.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// TestExport sends to a real collector's port, all operations or none; the timeline has them in either case.
func TestExport(t *testing.T) {
	for ratio, want := range map[float64][]string{0: nil, 1: {"RunPodSandbox", "network"}} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		r := &receiver{}
		g := grpc.NewServer()
		collector.RegisterTraceServiceServer(g, r)
		go func() { _ = g.Serve(l) }()
		tel, _ := open(t, Options{Endpoint: "http://" + l.Addr().String(), Ratio: ratio})
		ctx, done := tel.Operation(t.Context(), "RunPodSandbox")
		About(ctx, web)
		_, end := Stage(ctx, "network")
		end(nil)
		done(nil)
		if n := len(tel.timeline.operations("web")); n != 1 {
			t.Errorf("ratio %v: %d operations are kept", ratio, n)
		}
		if err := tel.Close(); err != nil {
			t.Error(err)
		}
		g.Stop()
		var names []string
		for _, s := range r.spans {
			names = append(names, s.Name)
		}
		slices.Sort(names)
		if diff := cmp.Diff(want, names); diff != "" {
			t.Errorf("ratio %v: %s", ratio, diff)
		}
	}
}

// TestNoCollector: a collector that is not there delays nothing but the end, and that within a bound.
func TestNoCollector(t *testing.T) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	tel, err := New(t.Context(), Options{Endpoint: "http://127.0.0.1:1", Ratio: 1, Log: logrus.NewEntry(log)})
	if err != nil {
		t.Fatal(err)
	}
	_, done := tel.Operation(t.Context(), "RunPodSandbox")
	done(nil)
	begin := time.Now()
	_ = tel.Close()
	if took := time.Since(begin); took > closeLimit+time.Second {
		t.Errorf("the end took %v", took)
	}
}

func BenchmarkOperation(b *testing.B) {
	log := logrus.New()
	log.SetOutput(io.Discard)
	tel, err := New(b.Context(), Options{Log: logrus.NewEntry(log)})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() { // a pod's
		ctx, done := tel.Operation(b.Context(), "RunPodSandbox")
		About(ctx, web)
		for range 10 {
			_, end := Stage(ctx, "stage")
			end(nil)
		}
		done(nil)
	}
}

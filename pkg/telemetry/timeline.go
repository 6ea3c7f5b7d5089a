package telemetry

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// What is kept: the last operations on pods, of each the first stages. Together that is 1 to 2 MiB at most.
const (
	maxOperations = 512
	maxStages     = 64
)

// Operation is one that was kept.
type Operation struct {
	Subject
	Trace  string `json:"trace"`  // OpenTelemetry's trace ID
	Stages []Stay `json:"stages"` // the operation itself first, then in the order in which they began

	spans []trace.SpanID // of the stages
}

// Subject is what an operation is about.
type Subject struct {
	PodID     string `json:"pod_id,omitempty"`
	Pod       string `json:"pod,omitempty"`       // namespace/name
	Container string `json:"container,omitempty"` // its name
}

// Stay is the time that an operation spent at a stage.
type Stay struct {
	Name  string    `json:"name"`
	Depth int       `json:"depth"` // 0 for the operation itself
	Begin time.Time `json:"begin"`
	End   time.Time `json:"end,omitzero"` // zero while it goes on
	Error string    `json:"error,omitempty"`
}

// timeline keeps operations. As a span processor it is told of each span that begins and ends.
type timeline struct {
	log *logrus.Entry

	mu    sync.Mutex
	going map[*Operation]sdktrace.ReadOnlySpan // the operations under way
	ended []*Operation                         // the last ones that have ended; the oldest at next, once it is full
	next  int
	at    map[trace.SpanID]place // of the stages of both
}

// place is where a stage is kept.
type place struct {
	operation *Operation
	stage     int
}

func newTimeline(log *logrus.Entry) *timeline {
	return &timeline{log: log, going: map[*Operation]sdktrace.ReadOnlySpan{}, at: map[trace.SpanID]place{}}
}

// OnStart notes that an operation or a stage of one has begun.
func (t *timeline) OnStart(_ context.Context, s sdktrace.ReadWriteSpan) {
	id := s.SpanContext().SpanID()
	stay := Stay{Name: s.Name(), Begin: s.StartTime()}
	t.mu.Lock()
	defer t.mu.Unlock()
	parent, ok := t.at[s.Parent().SpanID()]
	if s.SpanKind() == trace.SpanKindServer { // an operation: its parent, if it has one, is the caller's
		parent = place{operation: &Operation{Trace: s.SpanContext().TraceID().String()}}
		t.going[parent.operation] = s
	} else {
		if !ok || len(parent.operation.Stages) == maxStages {
			return
		}
		stay.Depth = parent.operation.Stages[parent.stage].Depth + 1
	}
	o := parent.operation
	t.at[id] = place{o, len(o.Stages)}
	o.Stages, o.spans = append(o.Stages, stay), append(o.spans, id)
}

// OnEnd notes that it has ended.
func (t *timeline) OnEnd(s sdktrace.ReadOnlySpan) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.at[s.SpanContext().SpanID()]
	if !ok {
		return
	}
	stay := &p.operation.Stages[p.stage]
	stay.End, stay.Error = s.EndTime(), s.Status().Description
	if p.stage == 0 {
		t.keep(p.operation, s)
		return
	}
	stageSeconds.WithLabelValues(p.operation.Stages[0].Name, stay.Name).Observe(stay.End.Sub(stay.Begin).Seconds())
}

// keep keeps an operation that has ended, if it was about a pod. t.mu is held.
func (t *timeline) keep(o *Operation, s sdktrace.ReadOnlySpan) {
	delete(t.going, o)
	o.Subject = subject(s.Attributes())
	switch {
	case o.Subject == Subject{}:
		t.forget(o)
		return
	case len(t.ended) < maxOperations:
		t.ended = append(t.ended, o)
	default:
		t.forget(t.ended[t.next])
		t.ended[t.next] = o
		t.next = (t.next + 1) % maxOperations
	}
	if t.log.Logger.IsLevelEnabled(logrus.DebugLevel) {
		t.log.WithFields(logrus.Fields{"pod": o.Pod, "container": o.Container, "took": o.took(&o.Stages[0]), "trace": o.Trace}).
			Debug(o.Stages[0].Name + ": " + o.line())
	}
}

// forget lets the stages of an operation go; what they begin later is not kept. t.mu is held.
func (t *timeline) forget(o *Operation) {
	for _, id := range o.spans {
		delete(t.at, id)
	}
}

// Shutdown and ForceFlush have nothing to do.
func (t *timeline) Shutdown(context.Context) error   { return nil }
func (t *timeline) ForceFlush(context.Context) error { return nil }

// operations returns copies of those about a pod, the oldest first. The pod is named by the beginning of its ID, by
// namespace/name or by its name; "" are all.
func (t *timeline) operations(pod string) []Operation {
	t.mu.Lock()
	defer t.mu.Unlock()
	var found []Operation
	add := func(o *Operation, s Subject) {
		_, name, _ := strings.Cut(s.Pod, "/")
		if s != (Subject{}) && (pod == s.Pod || pod == name || strings.HasPrefix(s.PodID, pod)) {
			found = append(found, Operation{Subject: s, Trace: o.Trace, Stages: slices.Clone(o.Stages)})
		}
	}
	for _, o := range t.ended {
		add(o, o.Subject)
	}
	for o, s := range t.going {
		add(o, subject(s.Attributes()))
	}
	slices.SortStableFunc(found, func(a, b Operation) int { return a.Stages[0].Begin.Compare(b.Stages[0].Begin) })
	return found
}

// The keys of a subject among the attributes of a span; those that OpenTelemetry's conventions name have their names.
const (
	podIDKey     = attribute.Key("criserver.pod.id")
	podKey       = attribute.Key("criserver.pod")
	containerKey = attribute.Key("k8s.container.name")
)

func (s Subject) attributes() (all []attribute.KeyValue) {
	for key, value := range map[attribute.Key]string{podIDKey: s.PodID, podKey: s.Pod, containerKey: s.Container} {
		if value != "" {
			all = append(all, key.String(value))
		}
	}
	return all
}

func subject(attributes []attribute.KeyValue) (s Subject) {
	for _, a := range attributes {
		switch a.Key {
		case podIDKey:
			s.PodID = a.Value.AsString()
		case podKey:
			s.Pod = a.Value.AsString()
		case containerKey:
			s.Container = a.Value.AsString()
		}
	}
	return s
}

// took is how long a stage went on, or goes on.
func (o *Operation) took(s *Stay) time.Duration {
	return cmp.Or(s.End, time.Now()).Sub(s.Begin).Round(10 * time.Microsecond)
}

// line names the stages right below the operation, each with its time.
func (o *Operation) line() string {
	var parts []string
	for i := range o.Stages {
		if s := &o.Stages[i]; s.Depth == 1 {
			parts = append(parts, fmt.Sprintf("%s %v", s.Name, o.took(s)))
		}
	}
	return strings.Join(parts, ", ")
}

// Write writes operations as people read them: of each stage when it began after the operation did, how long it went on,
// both in milliseconds, and what it is.
func Write(w io.Writer, operations []Operation) error {
	for i := range operations {
		o := &operations[i]
		whole := &o.Stages[0]
		if _, err := fmt.Fprintf(w, "%s  %s  %s\n", whole.Begin.Format("2006-01-02 15:04:05.000"), whole.Name,
			strings.Join(slices.DeleteFunc([]string{o.Pod, o.Container, o.PodID}, func(s string) bool { return s == "" }), "  ")); err != nil {
			return err
		}
		for j := range o.Stages {
			if err := o.write(w, &o.Stages[j]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (o *Operation) write(w io.Writer, s *Stay) error {
	name := strings.Repeat("  ", s.Depth) + s.Name
	if s.End.IsZero() {
		name += "  (goes on)"
	}
	if s.Error != "" {
		name += "  (" + s.Error + ")"
	}
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	_, err := fmt.Fprintf(w, "%10.2f %10.2f  %s\n", ms(s.Begin.Sub(o.Stages[0].Begin)), ms(o.took(s)), name)
	return err
}

// Package telemetry is what the daemon tells of its own work: how long each stage of an operation took, as
// OpenTelemetry spans, and counts, as Prometheus metrics.
//
// How to think of it: who serves a request begins an operation (package cri, one for each RPC). Whoever works on it says
// with Stage what it is at, and with About what it is about; both find the operation in their context, so that
// nothing has to be handed through, and do nothing where there is none. The last operations on pods are kept in memory
// for `criserver trace`; all stages are counted in histograms; and all spans are sent to a collector, if one is configured.
//
//	telemetry.go  operations and stages
//	timeline.go   the operations that are kept, and their text
//	metrics.go    the registry, and the metrics of operations and stages
//	http.go       how both are served
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sirupsen/logrus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Options configure New.
type Options struct {
	Version  string        // of criserver
	Endpoint string        // URL of a collector that takes OTLP over gRPC, http or https; empty: spans are kept here only
	Ratio    float64       // share of the operations that are sent, 0 to 1, unless their caller says which
	Log      *logrus.Entry // its debug level has a line for each operation on a pod
}

// Telemetry keeps what is told. It is safe for concurrent use.
type Telemetry struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	timeline *timeline
}

// scope is the name of this instrumentation.
const scope = "github.com/criserver/criserver"

// New begins to keep what is told; Close ends that.
func New(ctx context.Context, o Options) (*Telemetry, error) {
	t := &Telemetry{timeline: newTimeline(o.Log)}
	options := []sdktrace.TracerProviderOption{
		sdktrace.WithSampler(sampler{sdktrace.ParentBased(sdktrace.TraceIDRatioBased(o.Ratio))}),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", "criserver"), attribute.String("service.version", o.Version))),
		sdktrace.WithSpanProcessor(t.timeline),
	}
	if o.Endpoint != "" {
		exporter, err := otlptracegrpc.New(ctx, otlptracegrpc.WithEndpointURL(o.Endpoint)) // it connects when it sends
		if err != nil {
			return nil, fmt.Errorf("tracing endpoint %s: %w", o.Endpoint, err)
		}
		options = append(options, sdktrace.WithBatcher(exporter))
	}
	t.provider = sdktrace.NewTracerProvider(options...)
	t.tracer = t.provider.Tracer(scope)
	return t, nil
}

// closeLimit is how long Close waits for a collector that does not answer.
const closeLimit = 3 * time.Second

// Close sends what is not sent yet.
func (t *Telemetry) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	return t.provider.Shutdown(ctx)
}

// sampler records every span, for the timeline, and marks those to be sent.
type sampler struct{ sent sdktrace.Sampler }

func (s sampler) ShouldSample(p sdktrace.SamplingParameters) sdktrace.SamplingResult {
	r := s.sent.ShouldSample(p)
	if r.Decision == sdktrace.Drop {
		r.Decision = sdktrace.RecordOnly
	}
	return r
}

func (s sampler) Description() string { return s.sent.Description() }

// Operation begins an operation, which goes on until done is called with its outcome.
func (t *Telemetry) Operation(ctx context.Context, name string) (_ context.Context, done func(error)) {
	ctx, span := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindServer))
	return ctx, func(err error) { end(span, err) }
}

// Stage begins a stage of the operation in ctx, which goes on until done is called with its outcome. Stages in the
// context that it returns are within it. A name is one of a few: what varies belongs in an error or in the log.
func Stage(ctx context.Context, name string) (_ context.Context, done func(error)) {
	ctx, span := tracer(ctx).Start(ctx, name)
	return ctx, func(err error) { end(span, err) }
}

// Past is a stage that went on somewhere else.
func Past(ctx context.Context, name string, from, to time.Time) {
	_, span := tracer(ctx).Start(ctx, name, trace.WithTimestamp(from))
	span.End(trace.WithTimestamp(to))
}

// tracer is that of the operation in ctx; without one it makes spans that are not recorded.
func tracer(ctx context.Context) trace.Tracer {
	return trace.SpanFromContext(ctx).TracerProvider().Tracer(scope)
}

func end(span trace.Span, err error) {
	// That somebody gave up waiting is no failure of the stage.
	if err != nil && !errors.Is(err, context.Canceled) {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// About says what the operation in ctx is about.
func About(ctx context.Context, s Subject) {
	trace.SpanFromContext(ctx).SetAttributes(s.attributes()...)
}

// Carry returns ctx with the operation that is in from, for work that outlives its request.
func Carry(ctx, from context.Context) context.Context {
	return trace.ContextWithSpan(ctx, trace.SpanFromContext(from))
}

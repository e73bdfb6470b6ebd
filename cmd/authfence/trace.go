package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/authfence/authfence/observe/tracing"
)

// traceProvider sends spans by OTLP over HTTP when OpenTelemetry's own variables
// of the environment say where to; nil when they do not. They also say how to
// sample (OTEL_TRACES_SAMPLER), with which headers, and so on. stop sends what is
// left.
func (s *stage) traceProvider(ctx context.Context, name string) (provider trace.TracerProvider, stop func(), err error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" || os.Getenv("OTEL_SDK_DISABLED") == "true" {
		return nil, func() {}, nil
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("OTEL_EXPORTER_OTLP_…: %w", err)}
	}
	var mu sync.Mutex
	var said time.Time
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(said) > time.Minute { // a collector that is away fails every batch
			said = time.Now()
			s.log.Warn("traces are not sent", "err", err)
		}
	}))
	described, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", "authfence"), attribute.String("service.version", buildVersion()), attribute.String("service.instance.id", name),
	), resource.WithFromEnv())
	if err != nil {
		return nil, nil, usageError{fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)}
	}
	sdk := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(described), sdktrace.WithIDGenerator(tracing.IDs{}))
	return sdk, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if err := sdk.Shutdown(ctx); err != nil {
			s.log.Warn("the last traces were not sent", "err", err)
		}
	}, nil
}

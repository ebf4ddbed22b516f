// Command collector is a collector of OpenTelemetry for tests: the OTLP receiver of the
// OpenTelemetry collector, with its own configuration, in front of a writer of OTLP's JSON.
// Each batch that the receiver accepts is one line of the standard output.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/component/componenttest"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/consumer"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
)

func main() {
	grpc := flag.String("grpc", "[::]:4317", "where OTLP by gRPC is received")
	http := flag.String("http", "[::]:4318", "where OTLP by HTTP is received")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *grpc, *http); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, grpc, http string) error {
	factory := otlpreceiver.NewFactory()
	cfg := factory.CreateDefaultConfig()
	conf := confmap.NewFromStringMap(map[string]any{"protocols": map[string]any{
		"grpc": map[string]any{"endpoint": grpc}, "http": map[string]any{"endpoint": http},
	}})
	if err := conf.Unmarshal(cfg); err != nil {
		return err
	}
	out := &lines{}
	traces, err := consumer.NewTraces(out.traces)
	if err != nil {
		return err
	}
	logs, err := consumer.NewLogs(out.logs)
	if err != nil {
		return err
	}
	set := receiver.Settings{ID: component.NewID(factory.Type()), TelemetrySettings: componenttest.NewNopTelemetrySettings(), BuildInfo: component.NewDefaultBuildInfo()}
	t, err := factory.CreateTraces(ctx, set, cfg, traces)
	if err != nil {
		return err
	}
	l, err := factory.CreateLogs(ctx, set, cfg, logs)
	if err != nil {
		return err
	}
	// Both are the same receiver, which listens once.
	for _, c := range []component.Component{t, l} {
		if err := c.Start(ctx, componenttest.NewNopHost()); err != nil {
			return err
		}
	}
	<-ctx.Done()
	for _, c := range []component.Component{t, l} {
		if err := c.Shutdown(context.Background()); err != nil {
			return err
		}
	}
	return nil
}

// lines writes what the receiver has accepted.
type lines struct {
	mu   sync.Mutex // orders the lines
	span ptrace.JSONMarshaler
	log  plog.JSONMarshaler
}

func (o *lines) traces(_ context.Context, t ptrace.Traces) error {
	b, err := o.span.MarshalTraces(t)
	return o.line(b, err)
}

func (o *lines) logs(_ context.Context, l plog.Logs) error {
	b, err := o.log.MarshalLogs(l)
	return o.line(b, err)
}

func (o *lines) line(b []byte, err error) error {
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err = os.Stdout.Write(append(b, '\n'))
	return err
}

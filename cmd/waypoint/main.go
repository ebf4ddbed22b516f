// Command waypoint is the L7 proxy of the mesh. It is configured by its environment;
// see docs.
package main

import (
	"context"
	"os"

	"github.com/ambit-mesh/ambit/internal/gateway/app"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/process"
)

func main() {
	os.Exit(process.Program{Name: app.Program, Summary: "the L7 proxy of the mesh", Run: run}.Main(os.Args))
}

func run(ctx context.Context, env bootstrap.Env, host bootstrap.Host) error {
	cfg, err := app.Load(env, host)
	if err != nil {
		return err
	}
	logs, end, err := process.Start(&cfg.Settings)
	if err != nil {
		return err
	}
	defer end()
	a, err := app.New(cfg, logs)
	if err != nil {
		return err
	}
	logs.Logger(app.Program).Info("starting", "version", version.Get().String(), "identity", cfg.Identity().String(), "threads", cfg.Threads)
	return a.Run(ctx)
}

// Command ztunnel is the node proxy of the mesh. It is configured by its
// environment; see docs.
package main

import (
	"context"
	"os"

	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/process"
	"github.com/ambit-mesh/ambit/internal/ztunnel"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
)

func main() {
	os.Exit(process.Program{Name: "ztunnel", Summary: "the node proxy of the mesh", Run: run}.Main(os.Args))
}

func run(ctx context.Context, env bootstrap.Env, host bootstrap.Host) error {
	cfg, err := config.Load(env, host)
	if err != nil {
		return err
	}
	logs, end, err := process.Start(&cfg.Settings)
	if err != nil {
		return err
	}
	defer end()
	app, err := ztunnel.NewApp(cfg, logs)
	if err != nil {
		return err
	}
	logs.Logger("ztunnel").Info("starting", "version", version.Get().String(), "mode", string(cfg.Mode), "node", cfg.NodeName, "threads", cfg.Threads)
	return app.Run(ctx)
}

// Command ztunnel is the node proxy of the mesh. It is configured by its
// environment; see docs.
package main

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/ambit-mesh/ambit/internal/ops/lifecycle"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/ztunnel"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
)

const usage = `ztunnel: the node proxy of the mesh

Commands:
  proxy (default)  run the proxy; further arguments are accepted and ignored
  version          print the version
  help             print this

Everything else is set by environment variables.
`

func main() {
	cmd := "proxy"
	if len(os.Args) > 1 {
		cmd = os.Args[1]
	}
	switch cmd {
	case "version", "--version", "-version":
		fmt.Println(version.Get())
	case "help", "--help", "-h":
		fmt.Print(usage)
	case "proxy":
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, "ztunnel:", err)
			os.Exit(1)
		}
	default:
		fmt.Fprintf(os.Stderr, "ztunnel: unknown command %q\n%s", cmd, usage)
		os.Exit(2)
	}
}

func run() error {
	cfg, err := config.Load(config.FromEnviron(os.Environ()), config.ThisHost())
	if err != nil {
		return err
	}
	format, err := logging.ParseFormat(cfg.LogFormat)
	if err != nil {
		return err
	}
	// Event loops write access log lines: whoever reads them slowly must not
	// stop the traffic.
	var logs *logging.Logging
	out := logging.NewAsync(os.Stdout, func(n uint64) {
		logs.Logger("log").Warn("records were dropped: whoever reads this log is too slow", "records", n)
	})
	defer out.Close(logGrace)
	if logs, err = logging.New(out, format, cfg.LogLevel); err != nil {
		return err
	}
	tune(cfg)
	ctx, stop := lifecycle.SignalContext(context.Background())
	defer stop()
	app, err := ztunnel.NewApp(cfg, logs)
	if err != nil {
		return err
	}
	log := logs.Logger("ztunnel")
	log.Info("starting", "version", version.Get().String(), "mode", string(cfg.Mode), "node", cfg.NodeName, "threads", cfg.Threads)
	return app.Run(ctx)
}

// tune fits Go's runtime to a proxy. Processors: one per event loop and
// one for everything else, because a loop keeps its own also while it sleeps: so
// a handshake never waits for a loop. Collector: the data path does not allocate, so
// collections are rare however small the heap is kept. Both yield to GOMAXPROCS
// and GOGC when an operator sets them.
func tune(cfg *config.Config) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(cfg.Threads, 1) + 1)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// logGrace bounds the wait for the log's reader at the end.
const logGrace = time.Second

// gcPercent trades collector time, which is small here, for memory.
const gcPercent = 50

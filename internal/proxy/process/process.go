// Package process is a proxy as a process: its commands, its logging, its
// descriptors, and the servers by which it is watched and administrated.
package process

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
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
)

const usage = `%[1]s: %[2]s

Commands:
  proxy (default)  run the proxy; further arguments are accepted and ignored
  version          print the version
  help             print this

Everything else is set by environment variables.
`

// Program is one kind of proxy.
type Program struct {
	Name    string
	Summary string // for people who ask for help
	// Run runs the proxy until ctx ends. It calls Start once the settings are read.
	Run func(ctx context.Context, env bootstrap.Env, host bootstrap.Host) error
}

// Main runs the command that the arguments name, and returns the exit code.
func (p Program) Main(args []string) int {
	cmd := "proxy"
	if len(args) > 1 {
		cmd = args[1]
	}
	switch cmd {
	case "version", "--version", "-version":
		fmt.Println(version.Get())
	case "help", "--help", "-h":
		fmt.Printf(usage, p.Name, p.Summary)
	case "proxy":
		ctx, stop := lifecycle.SignalContext(context.Background())
		defer stop()
		if err := p.Run(ctx, bootstrap.FromEnviron(os.Environ()), bootstrap.ThisHost()); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
			return 1
		}
	default:
		fmt.Fprintf(os.Stderr, "%s: unknown command %q\n", p.Name, cmd)
		fmt.Fprintf(os.Stderr, usage, p.Name, p.Summary)
		return 2
	}
	return 0
}

// Start sets the process up as the settings say, and returns its logging. The caller
// calls end last.
func Start(s *bootstrap.Settings) (logs *logging.Logging, end func(), err error) {
	format, err := logging.ParseFormat(s.LogFormat)
	if err != nil {
		return nil, nil, err
	}
	// Event loops write access log lines: whoever reads them slowly must not
	// stop the traffic.
	out := logging.NewAsync(os.Stdout, func(n uint64) {
		logs.Logger("log").Warn("records were dropped: whoever reads this log is too slow", "records", n)
	})
	end = func() { out.Close(logGrace) }
	if logs, err = logging.New(out, format, s.LogLevel); err != nil {
		end()
		return nil, nil, err
	}
	tune(s)
	return logs, end, nil
}

// tune fits Go's runtime to a proxy. Processors: one per event loop and
// one for everything else, because a loop keeps its own also while it sleeps: so
// a handshake never waits for a loop. Collector: the data path does not allocate, so
// collections are rare however small the heap is kept. Both yield to GOMAXPROCS
// and GOGC when an operator sets them.
func tune(s *bootstrap.Settings) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(s.Threads, 1) + 1)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// logGrace bounds the wait for the log's reader at the end.
const logGrace = time.Second

// gcPercent trades collector time, which is small here, for memory.
const gcPercent = 50

package process

import (
	"context"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	api "github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/ops/admin"
	"github.com/ambit-mesh/ambit/internal/ops/lifecycle"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/proxy/bootstrap"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

// Servers are what a proxy serves about itself: administration, readiness,
// metrics.
type Servers struct {
	// Program is the proxy's name.
	Program string
	// Dump returns the answer to admin.PathDump.
	Dump func() any
	// Explain answers questions about connections that do not exist. It is served where
	// Dump is, and changes nothing.
	Explain func(context.Context, verdict.Question) (*verdict.Verdict, error)
	Quit    func()
	Logs    *logging.Logging
	Ready   *lifecycle.Readiness
	// Metrics are those of /metrics.
	Metrics prometheus.Gatherer
}

// Listen serves on the addresses of the settings until ctx ends.
func (s Servers) Listen(ctx context.Context, cfg *bootstrap.Settings) error {
	for _, e := range []struct {
		what, addr string
		h          http.Handler
	}{
		{"admin", cfg.AdminAddr.String(), s.admin()},
		{"stats", cfg.StatsAddr.String(), s.stats()},
		{"readiness", cfg.ReadyAddr.String(), s.readiness()},
	} {
		ln, err := listen(ctx, e.addr)
		if err != nil {
			return fmt.Errorf("%s server: %w", e.what, err)
		}
		go func() {
			if err := admin.Serve(ctx, ln, e.h); err != nil {
				s.log().Error("server ended", "server", e.what, "error", err)
			}
		}()
	}
	return nil
}

func (s Servers) log() *slog.Logger { return s.Logs.Logger("admin") }

func (s Servers) readiness() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /healthz/ready", s.Ready)
	return mux
}

func (s Servers) stats() http.Handler {
	h := promhttp.HandlerFor(telemetry.InOrder(s.Metrics), promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4})
	mux := http.NewServeMux()
	mux.Handle("/metrics", h)
	mux.Handle("/stats/prometheus", h)
	return mux
}

var dashboard = template.Must(template.New("").Parse(`<!DOCTYPE html><title>{{.Program}}</title><h1>{{.Program}} {{.Version}}</h1><ul>
<li><a href="config_dump">config_dump</a>: what this proxy knows and does</li>
<li>explain: what this proxy would do with a connection (used by <code>ambit why</code>)</li>
<li>logging: POST ?level=LEVEL or ?level=scope=LEVEL, ?reset</li>
<li>quitquitquit: POST drains and ends</li>
<li><a href="debug/pprof/">debug/pprof/</a>: profiles</li></ul>
`))

func (s Servers) admin() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(api.PathDump, admin.JSON(s.Dump))
	mux.Handle(verdict.Path, verdict.Handler(s.Explain))
	mux.Handle("/logging", admin.Logging(s.Logs.Levels))
	mux.Handle("/quitquitquit", admin.Action(s.Quit, "shutdown now"))
	admin.Profiles(mux)
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = dashboard.Execute(w, map[string]any{"Program": s.Program, "Version": version.Get()}) // a client that went away is its own affair
	})
	return mux
}

// Version returns the version of this program as dumps have it.
func Version() api.Version {
	v := version.Get()
	return api.Version{Version: v.Version, GitRevision: v.Commit, GoVersion: v.Go}
}

// listen shares the port with a predecessor that is still draining in the
// same network.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = sockopt.ReusePort(int(fd)) }); cerr != nil {
			return cerr
		}
		return err
	}}
	return lc.Listen(ctx, "tcp", addr)
}

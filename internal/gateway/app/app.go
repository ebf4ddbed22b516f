// Package app is a gateway as a program: what feeds the data path of package
// gateway, the tunnels at both of its ends, and how it starts and ends.
package app

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/gateway"
	"github.com/ambit-mesh/ambit/internal/l7/observe/requests"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/ops/lifecycle"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/ops/metrics"
	"github.com/ambit-mesh/ambit/internal/proxy/feed"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/observed"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
	"github.com/ambit-mesh/ambit/internal/proxy/process"
	"github.com/ambit-mesh/ambit/internal/proxy/resolve"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/transport/hbone"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// Program is the name of the program.
const Program = "waypoint"

// App is the whole program.
type App struct {
	cfg     *Config
	logs    *logging.Logging
	log     *slog.Logger
	dir     *workload.Directory
	certs   *certs.Manager
	tls     mtls.Options
	crl     *mtls.CRL // nil without one
	xds     *xds.Client
	learner *learner
	rules   *rules

	policies        *policies
	authentications *authentications
	observed        *observed.Layers
	spans, records  *otlp.Counters

	loops   *poll.Group
	gateway *gateway.Gateway
	server  *hbone.Server
	pool    *hbone.Pool
	rec     *telemetry.Recorder
	hosts   hosts.Table
	servers process.Servers
	ready   lifecycle.Readiness

	down, up, queues *quota
	listener         *poll.Listener

	quit    chan struct{}
	quitOne sync.Once
}

// New puts the program together; nothing runs before Run.
func New(cfg *Config, logs *logging.Logging) (*App, error) {
	a := &App{
		cfg: cfg, logs: logs, log: logs.Logger(Program), quit: make(chan struct{}),
		dir:      workload.NewDirectory(workload.Options{TrustDomain: cfg.TrustDomain}),
		observed: observed.New(requests.Language, cfg.Self.Namespace, logs.Logger("telemetry")), spans: otlp.NewCounters(Program, "spans"), records: otlp.NewCounters(Program, "log_records"),
		rules: newRules(), policies: newPolicies(logs.Logger("policy")), authentications: newAuthentications(logs.Logger("policy")), tls: mtls.Options{TLS12: cfg.TLS12, PQC: cfg.PQC},
	}
	reg := metrics.NewRegistry(Program)
	a.servers = process.Servers{Program: Program, Dump: a.dump, Quit: a.Quit, Logs: logs, Ready: &a.ready, Metrics: reg}
	signer, err := feed.Signer(&cfg.Settings, true, nil, logs.Logger("certs"))
	if err != nil {
		return nil, err
	}
	server, err := feed.Server(&cfg.Settings, cfg.XDS, nil)
	if err != nil {
		return nil, err
	}
	if cfg.CRLPath != "" {
		if a.crl, err = mtls.OpenCRL(cfg.CRLPath, logs.Logger("crl")); err != nil {
			return nil, err
		}
		a.tls.CRL = a.crl
	}
	a.xds, err = xds.NewClient(xds.ClientConfig{
		Server: server, Node: feed.Node(Program, &cfg.Settings, &cfg.Self, os.Environ()),
		Logger: logs.Logger("xds"), Metrics: feed.Metrics(reg),
		Types: []xds.TypeConfig{
			{TypeURL: wellknown.TypeHost, Optional: true, Apply: a.hosts.Apply},
			feed.Addresses(a.dir, true),
			{TypeURL: wellknown.TypeAuthentication, Apply: a.authentications.apply},
			{TypeURL: wellknown.TypePolicy, Apply: a.policies.apply},
			{TypeURL: wellknown.TypeTelemetry, Apply: a.observed.Apply},
			{TypeURL: wellknown.TypeRoute, Apply: a.rules.apply},
		},
	})
	if err != nil {
		return nil, err
	}
	process.RaiseDescriptors(a.log, "clients with many connections are refused early")
	if a.loops, err = poll.NewGroup(cfg.Threads); err != nil {
		return nil, err
	}
	a.certs = certs.NewManager(certs.Config{Sign: signer, Logger: logs.Logger("certs"), TTL: cfg.SecretTTL.Std()})
	a.tunnels()
	a.learner = &learner{client: a.xds, names: resolve.New()}
	a.telemetry()
	kinds, tries := new(telemetry.Kinds), new(telemetry.Tries)
	reg.MustRegister(telemetry.NewOverridden(a.rec, observed.OfServices{Layers: a.observed}), a.policies.counted, a.policies.asked, a.spans, a.records, kinds, tries)
	hooks := gateway.NewTelemetry(a.rec, accesslog.NewRequests(logs.Lines(accesslog.Scope)), a.dir.Snapshot)
	hooks.Policy, hooks.Asked, hooks.Decided, hooks.LeftOut = a.policies.verdict, a.policies.answered, kinds.Count, tries.LeftOut
	report := hooks.Request
	hooks.Request = func(r *gateway.Record) { tries.Ended(r.Tries); report(r) }
	a.gateway = gateway.New(gateway.Options{
		Loops: a.loops, Network: cfg.Network, Self: a.self, Source: cfg.Source, Directory: a.dir.Snapshot,
		Learn: a.learner.learn, Answered: a.learner.answered, Names: a.learner.names.Cached, Hosts: &a.hosts, Config: a.rules.config.Load, Tunnels: a.pool, Dial: a.dial,
		Identity: cfg.Identity(), ClientCertificate: cfg.ClientIdentity, Log: logs.Logger("gateway"),
		Policies: a.policies.set.Load, Authentications: a.authentications.set.Load, Telemetry: hooks, Observed: a.observed.Set, Spans: a.spans, Records: a.records,
	})
	a.servers.Explain = a.gateway.Explain
	a.policies.changed, a.authentications.changed, a.rules.judge = a.gateway.Recheck, a.gateway.Recheck, a.gateway.Rerouted
	if a.crl != nil {
		// On a goroutine of its own: a certificate can take its time.
		a.crl.OnReload(func() { go a.revoked() })
	}
	return a, nil
}

// Run serves until ctx ends or /quitquitquit is posted, then drains.
func (a *App) Run(ctx context.Context) error {
	// The servers outlive the drain, so that it can be watched.
	serving, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	working, stopWorking := context.WithCancel(context.Background())
	defer stopWorking()
	defer a.certs.Close()
	defer a.loops.Close()
	starting := []func(){a.ready.Task("certificate"), a.ready.Task("control plane"), a.ready.Task("addresses")}
	if err := a.servers.Listen(serving, &a.cfg.Settings); err != nil {
		return err
	}
	fatal := make(chan error, 1)
	if a.crl != nil {
		go a.crl.Run(working)
	}
	go func() {
		if err := a.xds.Run(working); err != nil && working.Err() == nil {
			fatal <- fmt.Errorf("xDS: %w", err)
		}
	}()
	defer a.certs.Hold(a.cfg.Identity(), certs.Warmup)()
	go process.GiveBack(working, a.loops, a.log)
	go a.start(working, starting)
	defer a.dir.Subscribe(a.directoryChanged)()
	if err := a.listen(); err != nil {
		return err
	}
	var failed error
	select {
	case <-ctx.Done():
	case <-a.quit:
	case failed = <-fatal:
		a.log.Error("cannot go on", "error", failed)
	case failed = <-a.loops.Failed():
		failed = fmt.Errorf("connections cannot be served: %w", failed)
		a.log.Error("cannot go on", "error", failed)
	}
	a.drain()
	return failed
}

// start reports each step as done once it is: the certificate, the routes, and the
// addresses that they name beside the gateway's own. It keeps requesting what later
// routes name.
func (a *App) start(ctx context.Context, done []func()) {
	for ctx.Err() == nil {
		try, cancel := context.WithTimeout(ctx, certificateTimeout)
		_, err := a.certs.Get(try, a.cfg.Identity())
		cancel()
		if err == nil {
			done[0]()
			break
		}
	}
	select {
	case <-a.xds.Synced():
		done[1]()
	case <-ctx.Done():
		return
	}
	for {
		config := a.rules.config.Load()
		// What routes lead to is requested before the first client needs it.
		names := append([]string{workload.AddressName(a.cfg.Network, a.cfg.Source)}, named(config)...)
		names = append(names, a.observed.Names()...)
		if !a.learner.all(ctx, names) || !a.learner.all(ctx, a.ownServices()) {
			return
		}
		if done[2] != nil {
			done[2]()
			done[2] = nil
			a.log.Info("ready", "identity", a.cfg.Identity().String())
		}
		select {
		case <-a.rules.changed:
		case <-a.observed.Changed():
		case <-ctx.Done():
			return
		}
	}
}

// telemetry makes the recorder of what the gateway carries.
func (a *App) telemetry() {
	a.rec = telemetry.NewLimited(Program, a.logs.Logger(accesslog.Scope), accesslog.Rates{
		Complete: int(a.cfg.AccessLogRate), Failed: int(a.cfg.AccessLogFailedRate),
	})
	a.rec.Follow(telemetry.Live{
		Workload: func(w *workload.Workload) bool { return a.dir.Snapshot().WorkloadByUID(w.UID) == w },
		Service: func(s telemetry.ServiceRef) bool {
			return a.dir.Snapshot().ServiceByName(s.Namespace, s.Hostname) != nil
		},
	})
}

// directoryChanged ends the connections to workloads that were removed, and keeps no tunnel
// for later to one that is about to end.
func (a *App) directoryChanged(ch workload.Changes) {
	for i := range ch.List {
		if c := &ch.List[i]; c.OldService != nil && c.NewService == nil {
			a.rec.ServiceGone(c.OldService)
		}
		if c := &ch.List[i]; c.OldService != nil && c.NewService != nil && !sameWaypoints(c.OldService, c.NewService) {
			a.gateway.Moved(c.NewService.Key())
		}
		if c := &ch.List[i]; c.OldWorkload != nil || c.NewWorkload != nil {
			a.rec.WorkloadChanged(c.OldWorkload, c.NewWorkload)
		}
		if c := &ch.List[i]; c.OldWorkload != nil && c.NewWorkload != nil && !sameServices(c.OldWorkload, c.NewWorkload) {
			a.gateway.Joined(c.NewWorkload.UID)
		}
		if c := &ch.List[i]; c.OldWorkload != nil && c.NewWorkload == nil {
			a.gateway.RemoveWorkload(c.OldWorkload.UID)
		}
		if c := &ch.List[i]; c.OldWorkload != nil {
			a.pool.Follow(c.OldWorkload.UID, c.Fate())
		}
	}
}

// sameWaypoints reports whether a service has the waypoints that it had.
func sameWaypoints(a, b *workload.Service) bool {
	return a.Waypoint == b.Waypoint && slices.Equal(a.WeightedWaypoints, b.WeightedWaypoints)
}

// sameServices reports whether a workload backs the same services as before.
func sameServices(a, b *workload.Workload) bool {
	return slices.EqualFunc(a.Services, b.Services, func(x, y workload.Membership) bool { return x.Service == y.Service })
}

// drainLook is how often a drain looks whether anything is left.
const drainLook = 50 * time.Millisecond

// drain lets clients go elsewhere and requests end, within the deadline. Node proxies
// are told late that the gateway ends: it accepts until the minimum has passed, and until
// then connections that are idle may have one more request.
func (a *App) drain() {
	a.log.Info("draining", "deadline", a.cfg.DrainDeadline.String())
	a.ready.Task("draining")
	over := time.After(a.cfg.DrainDeadline.Std())
	least := time.After(a.cfg.MinimumDrain.Std())
	a.server.Leave(true)
	a.gateway.Drain()
	look := time.NewTicker(drainLook)
	defer look.Stop()
	for accepting := true; accepting || a.gateway.Active() > 0; {
		select {
		case <-least:
			accepting = false
			a.gateway.EndIdle()
		case <-look.C:
		case <-over:
			if n := a.gateway.Active(); n > 0 {
				a.log.Warn("drain deadline is over", "connections_reset", n)
			}
			a.close(0)
			return
		}
	}
	a.close(flushTime)
}

// flushTime is how long the gateway waits for collectors to accept the last spans.
const flushTime = 2 * time.Second

// close ends everything. Collectors get the last spans within a time.
func (a *App) close(flush time.Duration) {
	a.listener.Close()
	a.gateway.End()
	a.server.Close(reason.Draining)
	ctx, cancel := context.WithTimeout(context.Background(), flush)
	defer cancel()
	a.gateway.Flush(ctx)
	a.gateway.Close()
	a.pool.Close(reason.Draining)
	a.log.Info("done")
}

// Quit makes the program drain and end.
func (a *App) Quit() { a.quitOne.Do(func() { close(a.quit) }) }

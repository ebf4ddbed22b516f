package ztunnel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/ops/lifecycle"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/ops/metrics"
	"github.com/ambit-mesh/ambit/internal/proxy/feed"
	"github.com/ambit-mesh/ambit/internal/proxy/hosts"
	"github.com/ambit-mesh/ambit/internal/proxy/localxds"
	layers "github.com/ambit-mesh/ambit/internal/proxy/observed"
	"github.com/ambit-mesh/ambit/internal/proxy/process"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/internal/zds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
	"github.com/ambit-mesh/ambit/internal/ztunnel/dnsproxy"
	"github.com/ambit-mesh/ambit/internal/ztunnel/egress"
	"github.com/ambit-mesh/ambit/internal/ztunnel/legs"
	"github.com/ambit-mesh/ambit/internal/ztunnel/limitservice"
	"github.com/ambit-mesh/ambit/internal/ztunnel/managed"
	"github.com/ambit-mesh/ambit/internal/ztunnel/observed"
	"github.com/ambit-mesh/ambit/internal/ztunnel/traffic"
)

// App is the whole program: a Node and what feeds it.
type App struct {
	cfg     *config.Config
	logs    *logging.Logging
	node    *Node
	certs   *certs.Manager
	xds     *xds.Client // nil with local configuration
	local   string      // the local configuration's text
	ready   lifecycle.Readiness
	loops   *poll.Group
	metrics prometheus.Gatherer
	quit    chan struct{}
	quitOne sync.Once
	crl     *mtls.CRL
	layers  *layers.Layers
	traffic *traffic.Node
	egress  *egress.Policies
	hosts   hosts.Table
}

// NewApp puts the program together; nothing runs before Run.
func NewApp(cfg *config.Config, logs *logging.Logging) (*App, error) {
	a := &App{cfg: cfg, logs: logs, quit: make(chan struct{}), layers: observed.NewLayers(logs.Logger("telemetry")), traffic: traffic.New(logs.Logger("traffic")), egress: egress.NewPolicies(logs.Logger("egress"))}
	log := logs.Logger("ztunnel")
	reg := metrics.NewRegistry("ztunnel")

	dir := workload.NewDirectory(workload.Options{TrustDomain: cfg.TrustDomain, PreferredNamespace: cfg.PreferredServiceNamespace})
	policies := rbac.NewStore()

	signer, err := feed.Signer(&cfg.Settings, cfg.Mode == config.Dedicated, legs.Dialer(cfg), logs.Logger("certs"))
	if err != nil {
		return nil, err
	}
	a.certs = certs.NewManager(certs.Config{Sign: signer, Logger: logs.Logger("certs"), TTL: cfg.SecretTTL.Std()})
	opts := mtls.Options{TLS12: cfg.TLS12, PQC: cfg.PQC}
	if cfg.CRLPath != "" {
		if a.crl, err = mtls.OpenCRL(cfg.CRLPath, logs.Logger("crl")); err != nil {
			return nil, err
		}
		opts.CRL = a.crl
	}
	if a.loops, err = poll.NewGroup(cfg.Threads); err != nil {
		return nil, err
	}
	process.RaiseDescriptors(log, "a pod with many connections is refused early")
	rec := telemetry.NewLimited("ztunnel", logs.Logger(accesslog.Scope), accesslog.Rates{Complete: int(cfg.AccessLogRate), Failed: int(cfg.AccessLogFailedRate)})
	manager := &managed.Metrics{}
	lookups := dnsproxy.NewMetrics()

	if err := a.source(dir, policies, feed.Metrics(reg)); err != nil {
		a.loops.Close()
		return nil, err
	}
	o := Options{
		Config: cfg, Logger: log, Directory: dir, Policies: policies, Certs: a.certs, TLS: opts,
		Loops: a.loops, Recorder: rec, Metrics: manager, Traffic: a.traffic, Egress: a.egress, Hosts: &a.hosts, DNS: dnsproxy.Options{Logger: logs.Logger("dns"), Metrics: lookups},
	}
	if a.xds != nil && cfg.XDSOnDemand {
		o.Demand = feed.Demand(a.xds)
	}
	o.Observed = observed.New(observed.Config{
		Loops: a.loops, Directory: dir, Layers: a.layers, Log: logs.Logger("telemetry"), Network: cfg.Network, Cluster: cfg.ClusterID, NodeName: cfg.NodeName,
		Self: cfg.Self, Certs: a.certs, TLS: opts, Mark: cfg.PacketMark, Demand: o.Demand,
	})
	a.traffic.Limits.Asker = limitservice.New(o.Observed, a.loops)
	reg.MustRegister(append(o.Observed.Collectors(), telemetry.NewOverridden(rec, o.Observed), manager, lookups, a.traffic.Limits)...)
	a.node = NewNode(o)
	manager.Follow(managed.Node{Counts: a.node.Counts, Egress: &a.node.egress, Budgets: &a.node.budgets})
	if a.crl != nil {
		// On a goroutine of its own: asking for certificates can wait.
		a.crl.OnReload(func() { go a.node.revoke() })
	}
	a.metrics = reg
	return a, nil
}

// Node is the proxy itself.
func (a *App) Node() *Node { return a.node }

// source connects the directory and the policies to the control plane, or to
// the local configuration.
func (a *App) source(dir *workload.Directory, policies *rbac.Store, m xds.ClientMetrics) error {
	text := a.cfg.LocalXDS
	if a.cfg.LocalXDSPath != "" {
		raw, err := os.ReadFile(a.cfg.LocalXDSPath)
		if err != nil {
			return fmt.Errorf("local xDS: %w", err)
		}
		text = string(raw)
	}
	if text != "" {
		c, err := localxds.Parse([]byte(text))
		if err != nil {
			return err
		}
		a.local = text
		return feed.Local(c, dir, policies)
	}
	if a.cfg.XDS.Address == "" {
		return errors.New("XDS_ADDRESS is empty, and there is no local configuration: nobody says what the mesh is")
	}
	server, err := feed.Server(&a.cfg.Settings, a.cfg.XDS, legs.Dialer(a.cfg))
	if err != nil {
		return err
	}
	a.xds, err = xds.NewClient(xds.ClientConfig{
		Server: server, Node: feed.Node("ztunnel", &a.cfg.Settings, cmp.Or(a.cfg.Self, a.cfg.Workload), os.Environ()),
		Logger: a.logs.Logger("xds"), Metrics: m,
		Types: []xds.TypeConfig{
			// Policies first: servers answer in the order of the questions.
			feed.Policies(policies),
			// Istio has none of these.
			{TypeURL: wellknown.TypeTelemetry, Optional: true, Apply: a.layers.Apply},
			{TypeURL: wellknown.TypeTraffic, Optional: true, Apply: a.traffic.Apply},
			{TypeURL: wellknown.TypeRateLimit, Optional: true, Apply: a.traffic.Limits.Apply},
			{TypeURL: wellknown.TypeRoute, Optional: true, Apply: a.traffic.ApplyRoutes},
			{TypeURL: wellknown.TypeEgress, Optional: true, Apply: a.egress.Apply},
			{TypeURL: wellknown.TypeHost, Optional: true, Apply: a.hosts.Apply},
			feed.Addresses(dir, a.cfg.XDSOnDemand),
		},
	})
	return err
}

// Run serves until ctx ends or /quitquitquit is posted, then drains.
func (a *App) Run(ctx context.Context) error {
	log := a.logs.Logger("ztunnel")
	// The servers outlive the drain, so that it can be watched.
	serving, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	servers := process.Servers{Program: "ztunnel", Dump: a.dump, Explain: a.node.Explain, Quit: a.Quit, Logs: a.logs, Ready: &a.ready, Metrics: a.metrics}
	if err := servers.Listen(serving, &a.cfg.Settings); err != nil {
		return err
	}
	fatal := make(chan error, 4)
	working, stopWorking := context.WithCancel(context.Background())
	defer stopWorking()
	defer a.certs.Close()
	if a.crl != nil {
		go a.crl.Run(working)
	}
	go a.node.Observed.Run(working)
	go process.GiveBack(working, a.loops, log)
	if a.xds != nil {
		synced := a.ready.Task("state manager")
		go func() {
			if err := a.xds.Run(working); err != nil && working.Err() == nil {
				fatal <- fmt.Errorf("xDS: %w", err)
			}
		}()
		go func() {
			select {
			case <-a.xds.Synced():
				log.Info("control plane is in sync")
				synced()
			case <-working.Done():
			}
		}()
	}
	adding, stopAdding := context.WithCancel(context.Background())
	defer stopAdding()
	proxies := a.ready.Task(proxyTask)
	go func() {
		// No connection is judged by policies that have not arrived yet.
		if a.xds != nil {
			select {
			case <-a.xds.Synced():
			case <-adding.Done():
				return
			}
		}
		if err := a.pods(adding, proxies); err != nil && adding.Err() == nil {
			fatal <- err
		}
	}()
	var failed error
	select {
	case <-ctx.Done():
	case <-a.quit:
	case failed = <-fatal:
		log.Error("cannot go on", "error", failed)
	case failed = <-a.loops.Failed():
		failed = fmt.Errorf("connections cannot be served: %w", failed)
		log.Error("cannot go on", "error", failed)
	}
	log.Info("draining", "deadline", a.cfg.DrainDeadline.String())
	stopAdding()
	a.ready.Task("draining")
	d, cancel := context.WithTimeout(context.Background(), a.cfg.DrainDeadline.Std())
	defer cancel()
	a.node.Drain(d)
	a.node.Observed.Flush()
	stopWorking()
	a.loops.Close()
	log.Info("done")
	return failed
}

// proxyTask is pending while there is nobody to say which pods to serve.
const proxyTask = "workload proxy manager"

// pods serves pods until ctx ends: those of the node agent, or the one of
// dedicated mode.
func (a *App) pods(ctx context.Context, ready func()) error {
	if a.cfg.Mode == config.Dedicated {
		if err := a.node.AddLocal(*a.cfg.Workload); err != nil {
			return err
		}
		ready()
		<-ctx.Done()
		return nil
	}
	if a.cfg.Self != nil {
		if err := a.node.AddSelf(*a.cfg.Self); err != nil {
			a.logs.Logger("ztunnel").Warn("the proxy's own pod cannot be reached through tunnels", "error", err)
		}
	}
	var mu sync.Mutex
	a.node.onConnected(func(yes bool) {
		mu.Lock()
		defer mu.Unlock()
		ready()
		if !yes {
			ready = a.ready.Task(proxyTask)
		}
	})
	client := zds.NewClient(zds.ClientConfig{Path: a.cfg.ZDSSocket, Handler: a.node, Logger: a.logs.Logger("zds")})
	if err := client.Run(ctx); err != nil {
		return fmt.Errorf("node agent: %w", err)
	}
	return nil
}

// Quit asks the program to drain and end.
func (a *App) Quit() { a.quitOne.Do(func() { close(a.quit) }) }

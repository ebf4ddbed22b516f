package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime/debug"
	"time"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	securityapi "istio.io/api/security/v1alpha1"

	api "github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/control/door"
	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/control/push"
	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/admin"
	"github.com/ambit-mesh/ambit/internal/ops/lifecycle"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/ops/metrics"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// stopTimeout is how long calls under way may take at the end; streams are
// told at once.
const stopTimeout = 5 * time.Second

// app is the control plane, wired together.
type app struct {
	cfg       config
	logs      *logging.Logging
	log       *slog.Logger
	metrics   *prometheus.Registry
	ready     lifecycle.Readiness
	opened    chan struct{} // closed when there is an authority
	synced    chan struct{}
	env       environment
	registry  *registry.Registry
	callers   access.Callers
	clusters  *auth.Clusters // set by secured
	outsiders *slog.Logger   // for callers that are refused
	authority *ca.Authority
	xds       *xds.Server
	cache     *xds.Cache
	door      *door.Door
	keys      *jwks.Fetcher
	secure    *grpc.Server
	plain     *grpc.Server // nil unless asked for

	listeners map[string]net.Listener // grpc, plaintext, monitor, admin, webhook
}

// environment is where a control plane runs: on directories of files, or on the
// Kubernetes API. Its methods are called in this order.
type environment interface {
	// Problems returns what could not be read. It may be called at any time.
	Problems() []api.Problem
	// Mesh completes the options of the registry.
	Mesh(*tables.Options)
	// State completes the configuration of the CA.
	State(*ca.Config)
	// Callers authenticates callers, in addition to client certificates.
	Callers() (auth.Authenticator, error)
	// Run delivers the objects of the control plane's own cluster.
	Run(context.Context, source.Sink) error
	// Tasks returns what runs next to the servers until the program ends.
	Tasks(started) []func(context.Context) error
}

// started is what exists when an environment's tasks begin.
type started struct {
	authority *ca.Authority
	registry  *registry.Registry
	webhook   net.Listener    // nil without a webhook
	synced    <-chan struct{} // closed when all objects have been read once
}

// newApp prepares what needs nobody else, and listens.
func newApp(cfg config, logs *logging.Logging) (_ *app, err error) {
	a := &app{
		cfg: cfg, logs: logs, log: logs.Logger("ambitd"), opened: make(chan struct{}), synced: make(chan struct{}),
		metrics: metrics.NewRegistry("ambitd"), listeners: map[string]net.Listener{},
		callers: access.Callers{NodeProxies: cfg.trustedNodeAccounts, Readers: cfg.directoryReaders},
	}
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	open := openFiles
	if cfg.kube.enabled {
		open = openCluster
	}
	if a.env, err = open(&a.cfg, logs, a.metrics); err != nil {
		return nil, err
	}
	if err := a.listen(); err != nil {
		return nil, err
	}
	m := newMetrics(a.metrics)
	m.problems(a.metrics, a.env.Problems)
	a.cache = xds.NewCache()
	a.door, a.outsiders = a.newDoor(), a.sparse("xds")
	a.xds = xds.NewServer(a.cache, xds.ServerOptions{
		Logger: logs.Logger("xds"), Metrics: m.server(), First: []string{wellknown.TypeAuthorization, wellknown.TypeAuthentication, wellknown.TypePolicy}, Scope: a.scopeOf,
		Caller: a.streamCaller, Heard: door.Heard, Settled: door.Settled,
	})
	opts := tables.Options{
		ClusterID: cfg.clusterID, TrustDomain: a.cfg.trustDomain, Network: cfg.network, RootNamespace: a.cfg.rootNamespace,
		Revisions: cfg.revisions(), TrustDomainAliases: a.cfg.trustDomainAliases,
		WaypointBypass: cfg.waypointBypass == wellknown.WaypointBypassAllow,
	}
	if a.keys, err = newKeys(&a.cfg, logs, m); err != nil {
		return nil, err
	}
	opts.Keys = a.keys
	a.env.Mesh(&opts)
	a.registry = registry.New(opts, &push.Pusher{Cache: a.cache, Updated: m.updated(a.cache)})
	a.callers.Nodes, a.callers.Gateways = a.registry.Nodes, a.registry.Gateways
	a.endOutdatedStreams()
	return a, nil
}

func (a *app) listen() error {
	addresses := map[string]string{"grpc": a.cfg.listen, "plaintext": a.cfg.plaintextListen, "monitor": a.cfg.monitor, "admin": a.cfg.admin}
	if a.cfg.kube.enabled {
		addresses["webhook"] = a.cfg.kube.webhookListen
	}
	for name, addr := range addresses {
		if addr == "" {
			continue
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("listen for %s: %w", name, err)
		}
		a.listeners[name] = ln
	}
	return nil
}

// secured makes the CA, and the servers behind authentication.
func (a *app) secured(ctx context.Context) error {
	cam := ca.NewMetrics(a.metrics)
	conf := ca.Config{
		PluginDir: a.cfg.pluginDir, TrustDomain: a.cfg.trustDomain,
		DefaultTTL: a.cfg.certTTL, MaxTTL: a.cfg.maxCertTTL, Margin: a.cfg.rotationMargin,
		Logger: a.logs.Logger("ca"), Metrics: cam,
	}
	a.env.State(&conf)
	var authority *ca.Authority
	err := a.patiently(ctx, "the keys of the certificate authority", func() (err error) {
		authority, err = ca.Open(conf)
		return err
	})
	if err != nil {
		return err
	}
	a.authority = authority
	close(a.opened)
	tokens, err := a.env.Callers()
	if err != nil {
		return err
	}
	a.clusters = auth.NewClusters(a.cfg.clusterID, tokens)
	var serving *tls.Config
	err = a.patiently(ctx, "a certificate of its own", func() (err error) {
		serving, err = authority.ServingConfig(a.cfg.serverNames)
		return err
	})
	if err != nil {
		return err
	}
	guard := auth.Interceptors{
		Authenticator: auth.Chain{a.clusters, auth.ClientCert{TrustDomain: a.cfg.trustDomain, Roots: authority.Roots}},
		Logger:        a.sparse("auth"),
		OnFailure:     cam.AuthenticationFailed,
		Gate:          a.door,
	}
	opts := append(xds.GRPCOptions(), door.GRPCOptions(guard)...)
	a.secure = grpc.NewServer(append(opts, grpc.Creds(a.door.Credentials(credentials.NewTLS(serving))))...)
	discovery.RegisterAggregatedDiscoveryServiceServer(a.secure, a.xds)
	securityapi.RegisterIstioCertificateServiceServer(a.secure, &ca.Server{
		Authority: authority, TrustDomain: a.cfg.trustDomain, TrustedNodeAccounts: a.cfg.trustedNodeAccounts,
		Nodes: a.registry.Nodes, Logger: a.logs.Logger("ca"), Metrics: cam,
	})
	if a.listeners["plaintext"] != nil {
		// Without TLS there are no certificates to sign: whoever listens would
		// have the token that asks for them.
		a.plain = grpc.NewServer(opts...)
		discovery.RegisterAggregatedDiscoveryServiceServer(a.plain, a.xds)
	}
	return nil
}

// Waits between attempts to have what the CA needs, and how often people are
// told again of the same obstacle.
const (
	openFirst  = 250 * time.Millisecond
	openMost   = 5 * time.Second
	openRemind = time.Minute
)

// patiently tries until where the CA's keys are kept answers, however long it
// takes: a program that ended instead would be started again later and later.
// Until then it is not ready and serves no client. Other errors, such as that of keys
// that are broken, are returned.
func (a *app) patiently(ctx context.Context, what string, try func() error) error {
	done := a.ready.Task(what)
	defer func() { done() }()
	begun := time.Now()
	var said string
	var saidAt time.Time
	for wait := openFirst; ; wait = min(2*wait, openMost) {
		err := try()
		if !errors.Is(err, ca.ErrUnavailable) && !errors.Is(err, ca.ErrConflict) && !errors.Is(err, ca.ErrNotYet) {
			if err == nil && said != "" {
				a.log.Info("no longer waiting for "+what, "after", time.Since(begun).Round(time.Millisecond))
			}
			return err
		}
		if err.Error() != said || time.Since(saidAt) > openRemind {
			said, saidAt = err.Error(), time.Now()
			a.log.Error("waiting for "+what+": not ready, nothing is served; trying again", "error", err)
		}
		before := done
		done = a.ready.Task(what + " (" + err.Error() + ")")
		before()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait/2 + rand.N(wait/2)):
		}
	}
}

// addr is where xDS and CA are served.
func (a *app) addr() net.Addr { return a.listeners["grpc"].Addr() }

// sink passes what sources deliver to the registry. A source.Set calls Synced
// once, whatever the number of sources.
type sink struct{ a *app }

func (s sink) Leave(c source.Cluster) { s.a.registry.Leave(c) }

func (s sink) Apply(events []source.Event) { s.a.registry.Apply(events) }

func (s sink) Synced() {
	s.a.registry.Synced()
	close(s.a.synced)
}

// run serves until ctx ends, then stops in order.
func (a *app) run(ctx context.Context) error {
	defer a.close()
	done := a.ready.Task("first reading of the configuration")
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return admin.Serve(ctx, a.listeners["monitor"], a.monitorHandler()) })
	if ln := a.listeners["admin"]; ln != nil {
		g.Go(func() error { return admin.Serve(ctx, ln, a.adminHandler()) })
	}
	g.Go(func() error {
		if err := a.secured(ctx); err != nil {
			return ignoreCanceled(err)
		}
		own, err := source.NewSet(sink{a}).Join(source.Cluster{})
		if err != nil {
			return err
		}
		g.Go(func() error { return ignoreCanceled(a.env.Run(ctx, own)) })
		g.Go(func() error { return ignoreCanceled(a.authority.Run(ctx)) })
		for _, task := range a.env.Tasks(started{a.authority, a.registry, a.listeners["webhook"], a.synced}) {
			g.Go(func() error { return ignoreCanceled(task(ctx)) })
		}
		select {
		case <-a.synced:
		case <-ctx.Done():
			return nil
		}
		g.Go(func() error { a.registry.Move(ctx, a.cache); return nil })
		g.Go(func() error { a.keys.Run(ctx, a.registry.SetKeys); return nil })
		done()
		a.log.Info("configuration read, serving", "addresses", a.addr().String())
		// Reading everything has left more behind than all that follows will.
		go debug.FreeOSMemory()
		return a.serve(ctx)
	})
	return g.Wait()
}

func ignoreCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (a *app) serve(ctx context.Context) error {
	g, serving := errgroup.WithContext(ctx)
	for _, s := range []struct {
		server *grpc.Server
		ln     net.Listener
		plain  bool
	}{{a.secure, a.listeners["grpc"], false}, {a.plain, a.listeners["plaintext"], true}} {
		if s.server == nil {
			continue
		}
		g.Go(func() error {
			if err := s.server.Serve(a.door.Listen(s.ln, s.plain)); !errors.Is(err, grpc.ErrServerStopped) { // stopped before it began
				return err
			}
			return nil
		})
		g.Go(func() error {
			<-serving.Done()
			a.stop(s.server)
			return nil
		})
	}
	return g.Wait()
}

// stop ends streams with a word to connect elsewhere, lets calls finish, and
// then does not wait any longer.
func (a *app) stop(s *grpc.Server) {
	a.xds.Close()
	force := time.AfterFunc(stopTimeout, s.Stop)
	defer force.Stop()
	s.GracefulStop()
}

func (a *app) close() {
	for _, ln := range a.listeners {
		_ = ln.Close() // those that were served are closed already
	}
	if a.authority != nil {
		if err := a.authority.Close(); err != nil {
			a.log.Error("state of the CA", "error", err)
		}
	}
}

func (a *app) monitorHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", metrics.Handler(a.metrics))
	mux.Handle("/readyz", &a.ready)
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	return mux
}

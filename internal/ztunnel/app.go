package ztunnel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	securitypb "github.com/ambit-mesh/ambit/api/security"
	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/ops/admin"
	"github.com/ambit-mesh/ambit/internal/ops/lifecycle"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/ops/metrics"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/transport/certs"
	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
	"github.com/ambit-mesh/ambit/internal/xds"
	"github.com/ambit-mesh/ambit/internal/zds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/config"
	"github.com/ambit-mesh/ambit/internal/ztunnel/localxds"
	"github.com/ambit-mesh/ambit/internal/ztunnel/telemetry"
)

// fakeCASeed makes the fake CA of all proxies one: FAKE_CA is for tests in
// which several of them meet.
const fakeCASeed = "mesh"

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
	metrics http.Handler
	quit    chan struct{}
	quitOne sync.Once
	crl     *mtls.CRL
}

// NewApp puts the program together; nothing runs before Run.
func NewApp(cfg *config.Config, logs *logging.Logging) (*App, error) {
	a := &App{cfg: cfg, logs: logs, quit: make(chan struct{})}
	log := logs.Logger("ztunnel")
	reg := metrics.NewRegistry("ztunnel")

	dir := workload.NewDirectory(workload.Options{TrustDomain: cfg.TrustDomain, PreferredNamespace: cfg.PreferredServiceNamespace})
	policies := rbac.NewStore()

	signer, err := a.signer()
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
	raiseDescriptors(log)
	rec := telemetry.NewLimited(logs.Logger(accesslog.Scope), accesslog.Rates{Complete: int(cfg.AccessLogRate), Failed: int(cfg.AccessLogFailedRate)})
	manager := NewManagerMetrics()
	reg.MustRegister(rec, manager)

	if err := a.source(dir, policies, xdsMetrics(reg)); err != nil {
		a.loops.Close()
		return nil, err
	}
	o := Options{
		Config: cfg, Logger: log, Directory: dir, Policies: policies, Certs: a.certs, TLS: opts,
		Loops: a.loops, Recorder: rec, Metrics: manager,
	}
	if a.xds != nil && cfg.XDSOnDemand {
		o.Demand = func(ctx context.Context, name string) error { return a.xds.Demand(ctx, wellknown.TypeAddress, name) }
	}
	a.node = NewNode(o)
	manager.node.Store(a.node)
	if a.crl != nil {
		// On a goroutine of its own: asking for certificates can wait.
		a.crl.OnReload(func() { go a.node.revoke() })
	}
	a.metrics = promhttp.HandlerFor(telemetry.InOrder(reg), promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4})
	return a, nil
}

// Node is the proxy itself.
func (a *App) Node() *Node { return a.node }

func (a *App) signer() (certs.Signer, error) {
	if a.cfg.FakeCA {
		a.logs.Logger("certs").Warn("FAKE_CA is set: certificates protect nothing")
		return certs.NewSharedFakeSigner(fakeCASeed)
	}
	if a.cfg.CA.Address == "" {
		return nil, errors.New("CA_ADDRESS is empty: without a CA there are no certificates; set it, or FAKE_CA=true for a test")
	}
	server, err := a.server(a.cfg.CA)
	if err != nil {
		return nil, err
	}
	return certs.NewCAClient(certs.CAConfig{Server: server, OwnIdentity: a.cfg.Mode == config.Dedicated})
}

// server is how to reach a server of the control plane.
func (a *App) server(e config.Endpoint) (controlplane.Server, error) {
	root, err := rootsFile(e.RootCA)
	if err != nil {
		return controlplane.Server{}, err
	}
	token, err := a.tokenFile()
	if err != nil {
		return controlplane.Server{}, err
	}
	return controlplane.Server{
		Address: e.URL(), RootCAFile: root, AltHostname: e.AltHostname, PQC: a.cfg.PQC,
		TokenFile: token, ClusterID: a.cfg.ClusterID, Headers: e.HeaderMap(), Dial: dialer(a.cfg),
	}, nil
}

// dialer marks the proxy's own connections where it lives in the network that
// it captures, or they would come back to it; nil where it does not.
func dialer(c *config.Config) func(context.Context, string) (net.Conn, error) {
	if c.Mode != config.Dedicated || c.PacketMark == 0 {
		return nil
	}
	d := net.Dialer{Control: func(_, _ string, conn syscall.RawConn) error {
		var err error
		if cerr := conn.Control(func(fd uintptr) { err = sockopt.Mark(int(fd), c.PacketMark) }); cerr != nil {
			return cerr
		}
		return err
	}}
	return func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
}

// rootsFile turns what a variable says into the file that clients read; ""
// means the system's roots. PEM text is put into a file of its own.
func rootsFile(v string) (string, error) {
	switch {
	case v == config.RootsSystem:
		return "", nil
	case strings.Contains(v, "-----BEGIN"):
		return inlineFile("roots", v)
	}
	return v, nil
}

func (a *App) tokenFile() (string, error) {
	if a.cfg.Token != "" {
		return inlineFile("token", a.cfg.Token)
	}
	return a.cfg.TokenFile, nil
}

// inlineFile keeps a value in memory that clients want in a file. The link
// under /proc lives as long as the descriptor, which is never closed.
func inlineFile(name, text string) (string, error) {
	f, err := os.CreateTemp("", "ztunnel-"+name+"-")
	if err != nil {
		return "", err
	}
	if err := os.Remove(f.Name()); err != nil {
		return "", err
	}
	if _, err := f.WriteString(text); err != nil {
		return "", err
	}
	inline = append(inline, f)
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil
}

// inline keeps the files of inlineFile from the collector.
var inline []*os.File

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
		return applyLocal(c, dir, policies)
	}
	if a.cfg.XDS.Address == "" {
		return errors.New("XDS_ADDRESS is empty, and there is no local configuration: nobody says what the mesh is")
	}
	server, err := a.server(a.cfg.XDS)
	if err != nil {
		return err
	}
	a.xds, err = xds.NewClient(xds.ClientConfig{
		Server: server, Node: xdsNode(a.cfg),
		Logger: a.logs.Logger("xds"), Metrics: m,
		Types: []xds.TypeConfig{
			// Policies first: servers answer in the order of the questions.
			{TypeURL: wellknown.TypeAuthorization, Apply: func(d xds.Delta) []xds.Rejection { return applyPolicies(policies, d) }},
			{TypeURL: wellknown.TypeAddress, OnDemand: a.cfg.XDSOnDemand, Apply: func(d xds.Delta) []xds.Rejection { return applyAddresses(dir, d) }},
		},
	})
	return err
}

func applyLocal(c *localxds.Config, dir *workload.Directory, policies *rbac.Store) error {
	var errs []error
	_, bad := dir.Apply(c.Addresses, nil)
	for _, r := range bad {
		errs = append(errs, fmt.Errorf("local xDS: %s: %w", r.Name, r.Err))
	}
	var ups []rbac.Update
	for _, p := range c.Policies {
		ups = append(ups, rbac.Update{Name: p.Namespace + "/" + p.Name, Policy: p})
	}
	for _, r := range policies.Apply(ups, nil) {
		errs = append(errs, fmt.Errorf("local xDS: policy %s: %w", r.Name, r.Err))
	}
	return errors.Join(errs...)
}

func applyAddresses(dir *workload.Directory, d xds.Delta) []xds.Rejection {
	var out []xds.Rejection
	set := make([]*workloadpb.Address, 0, len(d.Updated))
	for _, r := range d.Updated {
		addr := &workloadpb.Address{}
		if err := proto.Unmarshal(r.Body, addr); err != nil {
			out = append(out, xds.Rejection{Name: r.Name, Err: err})
			continue
		}
		set = append(set, addr)
	}
	_, bad := dir.Apply(set, d.Removed)
	for _, b := range bad {
		out = append(out, xds.Rejection{Name: b.Name, Err: b.Err})
	}
	return out
}

func applyPolicies(store *rbac.Store, d xds.Delta) []xds.Rejection {
	var out []xds.Rejection
	ups := make([]rbac.Update, 0, len(d.Updated))
	for _, r := range d.Updated {
		p := &securitypb.Authorization{}
		if err := proto.Unmarshal(r.Body, p); err != nil {
			// What cannot be read may be a DENY: given none, the store rejects the
			// update and refuses everything in its namespace until it can be read.
			p = nil
		}
		ups = append(ups, rbac.Update{Name: r.Name, Policy: p})
	}
	for _, b := range store.Apply(ups, d.Removed) {
		out = append(out, xds.Rejection{Name: b.Name, Err: b.Err})
	}
	return out
}

// xdsNode says who asks, in Istio's form.
func xdsNode(c *config.Config) *core.Node {
	self := config.WorkloadInfo{}
	if c.Self != nil {
		self = *c.Self
	} else if c.Workload != nil {
		self = *c.Workload
	}
	ip := c.InstanceIP
	if ip == "" {
		ip = "1.1.1.1" // upstream's placeholder
	}
	meta := map[string]any{
		"NAME": self.Name, "NAMESPACE": self.Namespace, "INSTANCE_IPS": ip, "NODE_NAME": c.NodeName,
		"CLUSTER_ID": c.ClusterID, "SERVICE_ACCOUNT": self.ServiceAccount,
		"ISTIO_VERSION": version.Get().Version,
	}
	for k, v := range c.ProxyMetadata {
		meta[k] = v
	}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		if name, ok := strings.CutPrefix(k, "ISTIO_METAJSON_"); ok {
			var parsed any
			if json.Unmarshal([]byte(v), &parsed) == nil {
				meta[name] = parsed
			}
		}
	}
	md, err := structpb.NewStruct(meta)
	if err != nil {
		md = nil // values that protobuf cannot carry; the id is enough
	}
	return &core.Node{
		Id:       fmt.Sprintf("ztunnel~%s~%s.%s~%s.svc.%s", ip, self.Name, self.Namespace, self.Namespace, c.ClusterDomain),
		Metadata: md,
	}
}

// Run serves until ctx ends or /quitquitquit is posted, then drains.
func (a *App) Run(ctx context.Context) error {
	log := a.logs.Logger("ztunnel")
	// The servers outlive the drain, so that it can be watched.
	serving, stopServing := context.WithCancel(context.Background())
	defer stopServing()
	if err := a.servers(serving); err != nil {
		return err
	}
	fatal := make(chan error, 4)
	working, stopWorking := context.WithCancel(context.Background())
	defer stopWorking()
	defer a.certs.Close()
	if a.crl != nil {
		go a.crl.Run(working)
	}
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

// servers listens on the process's own ports.
func (a *App) servers(ctx context.Context) error {
	ready := http.NewServeMux()
	ready.Handle("GET /healthz/ready", &a.ready)
	stats := http.NewServeMux()
	stats.Handle("/metrics", a.metrics)
	stats.Handle("/stats/prometheus", a.metrics)
	for _, s := range []struct {
		what, addr string
		h          http.Handler
	}{
		{"admin", a.cfg.AdminAddr.String(), a.adminMux()},
		{"stats", a.cfg.StatsAddr.String(), stats},
		{"readiness", a.cfg.ReadyAddr.String(), ready},
	} {
		ln, err := listen(ctx, s.addr)
		if err != nil {
			return fmt.Errorf("%s server: %w", s.what, err)
		}
		go func() {
			if err := admin.Serve(ctx, ln, s.h); err != nil {
				a.logs.Logger("admin").Error("server ended", "server", s.what, "error", err)
			}
		}()
	}
	return nil
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

// Quit asks the program to drain and end.
func (a *App) Quit() { a.quitOne.Do(func() { close(a.quit) }) }

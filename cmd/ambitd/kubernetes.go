package main

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	api "github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/control/gateways"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/control/tables"
	"github.com/ambit-mesh/ambit/internal/kube/castore"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/kube/deployer"
	"github.com/ambit-mesh/ambit/internal/kube/election"
	"github.com/ambit-mesh/ambit/internal/kube/statuswriter"
	"github.com/ambit-mesh/ambit/internal/kube/tokenreview"
	"github.com/ambit-mesh/ambit/internal/kube/trust"
	"github.com/ambit-mesh/ambit/internal/kube/untaint"
	"github.com/ambit-mesh/ambit/internal/kube/webhook"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/kube"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// Leases: what only one replica of all control planes of the namespace does, and
// for status and proxies of what is labelled for a revision, one replica of this.
const (
	leaseCA      = "ambit-ca-leader"
	leaseTrust   = "ambit-trust-leader"
	leaseStatus  = "ambit-status-leader"
	leaseNamed   = "ambit-status-%s-leader"
	leaseUntaint = "ambit-untaint-leader"

	leaseDeploy      = "ambit-gateways-leader"
	leaseDeployNamed = "ambit-gateways-%s-leader"
)

// leaseLook bounds a look at a lease.
const leaseLook = 5 * time.Second

// cluster is a control plane on the Kubernetes API, which any number of replicas
// share.
type cluster struct {
	cfg     *config
	logs    *logging.Logging
	metrics *prometheus.Registry
	client  *client.Client
	source  *kube.Source
	store   *castore.Store
	plugin  *castore.Plugin // nil with --ca-dir
	mesh    *meshFile       // nil without --mesh-config
	scope   *scope

	started // set by Tasks
}

func openCluster(cfg *config, logs *logging.Logging, metrics *prometheus.Registry) (_ environment, err error) {
	c := &cluster{cfg: cfg, logs: logs, metrics: metrics, scope: newScope()}
	if cfg.kube.meshConfig != "" {
		if c.mesh, err = openMeshFile(cfg.kube.meshConfig, logs.Logger("mesh")); err != nil {
			return nil, err
		}
		if err := c.mesh.adopt(cfg); err != nil {
			return nil, err
		}
		c.scope.set(c.mesh.config().DiscoverySelectors)
	}
	c.scope.always = []string{cfg.kube.namespace, cfg.rootNamespace}
	c.client, err = client.New(client.Options{Kubeconfig: cfg.kube.kubeconfig, UserAgent: userAgent()})
	if err != nil {
		return nil, err
	}
	c.source, err = kube.New(kube.Options{
		Client: c.client, Kinds: source.Kinds(), DiscoverySelectors: c.scope.selectors(),
		Logger: logs.Logger("source"), Registerer: metrics, ClusterID: cfg.clusterID,
	})
	if err != nil {
		return nil, err
	}
	c.store = castore.New(c.client.Kube, cfg.kube.namespace)
	if cfg.pluginDir == "" {
		c.plugin = castore.NewPlugin(c.client.Kube, cfg.kube.namespace)
	}
	return c, nil
}

// Problems implements environment.
func (c *cluster) Problems() []api.Problem {
	list := c.source.Problems()
	out := make([]api.Problem, len(list))
	for i, p := range list {
		out[i] = api.Problem{Object: p.Key.String(), Message: p.Message}
	}
	return out
}

// Mesh implements environment.
func (c *cluster) Mesh(o *tables.Options) {
	o.WriteBack, o.BoundCallers = true, true
	if c.mesh != nil {
		c.mesh.options(o)
	}
}

// State implements environment.
func (c *cluster) State(conf *ca.Config) {
	conf.Store = c.store
	conf.Others = c.othersSign()
	if c.plugin != nil {
		conf.Plugin = c.plugin
	}
}

// Run implements environment.
func (c *cluster) Run(ctx context.Context, sink source.Sink) error { return c.source.Run(ctx, sink) }

// Reviews a second, and at once: the nodes of a large mesh that all connect
// when this program starts, while who tries tokens that are none cannot make
// the API server work without end.
const (
	reviewRate  = 200
	reviewBurst = 1000
)

// Callers asks the API server who calls. It does so by a client of its own:
// nodes that all connect at once would use up the rate of everything else, and
// wait in it for longer than they may.
func (c *cluster) Callers() (auth.Authenticator, error) {
	own, err := client.New(client.Options{Kubeconfig: c.cfg.kube.kubeconfig, UserAgent: userAgent(), QPS: reviewRate, Burst: reviewBurst})
	if err != nil {
		return nil, err
	}
	return auth.KubernetesTokens{
		Reviewer: tokenreview.New(own.Kube), Audience: c.cfg.kube.audience,
		Signatures: tokenreview.NewKeys(c.client.Kube, c.logs.Logger("auth")),
	}, nil
}

func userAgent() string { return "ambitd/" + version.Get().Version }

// Tasks implements environment.
func (c *cluster) Tasks(s started) []func(context.Context) error {
	c.started = s
	texts := map[trust.Document]func() ([]byte, <-chan struct{}){trust.Roots: c.authority.Bundle}
	shared := c.registry.Reports.Follow(status.Unnamed)
	tasks := []func(context.Context) error{
		c.store.Run,
		c.elected(leaseCA, func(ctx context.Context) error { c.authority.Lead(ctx); return nil }),
		c.elected(leaseTrust, func(ctx context.Context) error {
			return trust.Run(ctx, trust.Options{
				Client: c.client, Texts: texts, Selected: c.scope.selects, Reselect: c.scope.changed, Logger: c.logs.Logger("trust"),
			})
		}),
		c.elected(leaseStatus, func(ctx context.Context) error { return c.writeStatus(ctx, shared) }),
	}
	if c.cfg.kube.revision != "" {
		own := c.registry.Reports.Follow(status.Named)
		tasks = append(tasks, c.elected(fmt.Sprintf(leaseNamed, c.cfg.kube.revision), func(ctx context.Context) error { return c.writeStatus(ctx, own) }))
	}
	tasks = append(tasks, c.deployments()...)
	if c.plugin != nil {
		lists := castore.NewRevocations(c.plugin, mtls.CheckCRL, c.logs.Logger("trust"))
		texts[trust.Revocations] = lists.Text
		tasks = append(tasks, c.plugin.Run, lists.Run)
	}
	if c.mesh != nil {
		tasks = append(tasks, c.followMesh)
	}
	if ln := c.webhook; ln != nil {
		tasks = append(tasks, func(ctx context.Context) error { return c.serveWebhook(ctx, ln) })
	}
	if c.cfg.kube.taint != "" {
		tasks = append(tasks, c.elected(leaseUntaint, func(ctx context.Context) error {
			return untaint.Run(ctx, untaint.Options{Client: c.client, Taint: c.cfg.kube.taint, Namespace: cmp.Or(c.cfg.kube.taintNamespace, c.cfg.kube.namespace), Logger: c.logs.Logger("untaint")})
		}))
	}
	return tasks
}

// elected is a task that one replica does at a time. Its failure is not the
// end of the program: another replica, or another attempt, may do better.
func (c *cluster) elected(lease string, work func(context.Context) error) func(context.Context) error {
	log := c.logs.Logger("election")
	return func(ctx context.Context) error {
		return election.Run(ctx, election.Options{
			Kube: c.client.Kube, Namespace: c.cfg.kube.namespace, Lease: lease, Identity: replica(), Logger: log,
		}, func(ctx context.Context) {
			if err := ignoreCanceled(work(ctx)); err != nil {
				log.Error("what the leader does has failed", "lease", lease, "error", err)
			}
		})
	}
}

// othersSign reports whether another replica leads the CA.
func (c *cluster) othersSign() func() bool {
	o := election.Observer{Options: election.Options{Kube: c.client.Kube, Namespace: c.cfg.kube.namespace, Lease: leaseCA, Identity: replica()}}
	return func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), leaseLook)
		defer cancel()
		return o.Taken(ctx)
	}
}

// replica is the name of this replica among the others.
func replica() string {
	host, _ := os.Hostname()
	return cmp.Or(os.Getenv("POD_NAME"), fmt.Sprintf("%s-%d", host, os.Getpid()))
}

// writeStatus writes reports. It begins when everything is known: half of the
// configuration would give wrong answers.
func (c *cluster) writeStatus(ctx context.Context, reports *status.Follower) error {
	select {
	case <-ctx.Done():
		return nil
	case <-c.synced:
	}
	return statuswriter.Run(ctx, statuswriter.Options{Dynamic: c.client.Dynamic, Reports: reports, Logger: c.logs.Logger("status")})
}

// deployments are the tasks that run the proxies of Gateways.
func (c *cluster) deployments() []func(context.Context) error {
	if c.cfg.kube.waypointImage == "" {
		return nil
	}
	tasks := []func(context.Context) error{c.elected(leaseDeploy, func(ctx context.Context) error { return c.deploy(ctx, false) })}
	if c.cfg.kube.revision != "" {
		tasks = append(tasks, c.elected(fmt.Sprintf(leaseDeployNamed, c.cfg.kube.revision), func(ctx context.Context) error { return c.deploy(ctx, true) }))
	}
	return tasks
}

// deploy runs the proxies of Gateways that are labelled for this revision (named), or
// for none. It begins when everything is known: a Gateway that has not been read yet
// looks like one that is gone.
func (c *cluster) deploy(ctx context.Context, named bool) error {
	select {
	case <-ctx.Done():
		return nil
	case <-c.synced:
	}
	all := c.registry.Deployments
	var classes []*gatewayv1.GatewayClass
	if !named { // they are shared by all revisions
		classes = gateways.Classes()
	}
	return deployer.Run(ctx, deployer.Options{
		Client: c.client, Gateways: func() []*deploy.Plan { return all.List(named) }, Changed: all.Changed(), Classes: classes,
		Settings: deploy.Settings{
			Image: c.cfg.kube.waypointImage, XDS: c.service() + "." + c.cfg.kube.namespace + ".svc:" + strconv.Itoa(wellknown.PortXDS),
			ClusterID: c.cfg.clusterID, Network: c.cfg.network, TrustDomain: c.cfg.trustDomain, Domain: wellknown.DefaultDomain,
			Revision: c.cfg.kube.revision, LogLevel: "info", Resources: c.cfg.kube.waypointResources.ResourceRequirements,
			Deployment: c.cfg.kube.waypointDeployment,
		},
		Logger: c.logs.Logger("gateways"),
	})
}

// service is the name of this control plane's Service.
func (c *cluster) service() string {
	if r := c.cfg.kube.revision; r != "" && r != wellknown.DefaultRevision {
		return "istiod-" + r
	}
	return "istiod"
}

func (c *cluster) serveWebhook(ctx context.Context, ln net.Listener) error {
	return webhook.Run(ctx, webhook.Options{
		Client: c.client, Namespace: c.cfg.kube.namespace, ServiceName: c.service(), Revision: c.cfg.kube.revision,
		RootNamespace: c.cfg.rootNamespace, Addresses: c.registry, Listen: ln, Certificate: c.authority.ServingConfig, CABundle: c.authority.Bundle,
		Logger: c.logs.Logger("webhook"), Registerer: c.metrics,
	})
}

// followMesh takes over what may change in the mesh configuration at run time.
func (c *cluster) followMesh(ctx context.Context) error {
	return c.mesh.watch(ctx, func() {
		c.mesh.apply(c.cfg, c.registry)
		c.scope.set(c.mesh.config().DiscoverySelectors)
		if err := c.source.SetDiscoverySelectors(c.scope.selectors()); err != nil {
			c.logs.Logger("mesh").Error("discovery selectors", "error", err)
		}
	})
}

// scope is which namespaces the mesh looks at.
type scope struct {
	always  []string      // namespaces of the mesh itself
	changed chan struct{} // has a value after a change

	mu     sync.Mutex
	chosen []metav1.LabelSelector // none: all
}

func newScope() *scope { return &scope{changed: make(chan struct{}, 1)} }

func (s *scope) set(selectors []metav1.LabelSelector) {
	s.mu.Lock()
	s.chosen = selectors
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// selectors include the mesh's own namespaces, without whose pods no node
// proxy could be told from an impostor.
func (s *scope) selectors() []metav1.LabelSelector {
	s.mu.Lock()
	defer s.mu.Unlock()
	return meshconfig.Config{DiscoverySelectors: s.chosen}.Discovery(s.always...)
}

func (s *scope) selects(ns *corev1.Namespace) bool {
	return meshconfig.Discovers(s.selectors(), ns.Labels)
}

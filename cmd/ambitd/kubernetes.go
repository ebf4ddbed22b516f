package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/kube/castore"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/kube/election"
	"github.com/ambit-mesh/ambit/internal/kube/statuswriter"
	"github.com/ambit-mesh/ambit/internal/kube/tokenreview"
	"github.com/ambit-mesh/ambit/internal/kube/trust"
	"github.com/ambit-mesh/ambit/internal/kube/untaint"
	"github.com/ambit-mesh/ambit/internal/kube/webhook"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/version"
	"github.com/ambit-mesh/ambit/internal/source"
	"github.com/ambit-mesh/ambit/internal/source/kube"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

// Leases: what only one replica of all control planes of the namespace does, and
// for status of what is labelled for a revision, one replica of this.
const (
	leaseCA      = "ambit-ca-leader"
	leaseTrust   = "ambit-trust-leader"
	leaseStatus  = "ambit-status-leader"
	leaseNamed   = "ambit-status-%s-leader"
	leaseUntaint = "ambit-untaint-leader"
)

// leaseLook bounds a look at a lease.
const leaseLook = 5 * time.Second

// cluster is the control plane's side of the Kubernetes API.
type cluster struct {
	*app
	client *client.Client
	source *kube.Source
	store  *castore.Store
	plugin *castore.Plugin // nil with --ca-dir
	mesh   *meshFile       // nil without --mesh-config
	scope  *scope
}

// onKubernetes is a control plane on the Kubernetes API, which any number of
// replicas share.
func (a *app) onKubernetes() (_ ground, err error) {
	c := &cluster{app: a, scope: newScope()}
	if a.cfg.kube.meshConfig != "" {
		if c.mesh, err = openMeshFile(a.cfg.kube.meshConfig, a.logs.Logger("mesh")); err != nil {
			return ground{}, err
		}
		if err := c.adopt(); err != nil {
			return ground{}, err
		}
	}
	c.scope.always = []string{a.cfg.kube.namespace, a.cfg.rootNamespace}
	c.client, err = client.New(client.Options{Kubeconfig: a.cfg.kube.kubeconfig, UserAgent: userAgent()})
	if err != nil {
		return ground{}, err
	}
	c.source, err = kube.New(kube.Options{
		Client: c.client, Kinds: slices.Sorted(maps.Keys(source.Kinds())), DiscoverySelectors: c.scope.selectors(),
		Logger: a.logs.Logger("source"), Registerer: a.metrics,
	})
	if err != nil {
		return ground{}, err
	}
	c.store = castore.New(c.client.Kube, a.cfg.kube.namespace)
	if a.cfg.pluginDir == "" {
		c.plugin = castore.NewPlugin(c.client.Kube, a.cfg.kube.namespace)
	}
	return ground{
		source: c.source,
		problems: func() (any, int) {
			list := c.source.Problems()
			return orEmpty(list), len(list)
		},
		mesh: func(o *registry.Options) {
			o.WriteBack, o.BoundCallers = true, true
			if c.mesh != nil {
				o.Visibility = c.mesh.config().ServiceEntryVisibility
			}
		},
		state: func(conf *ca.Config) {
			conf.Store = c.store
			conf.Others = c.othersSign()
			if c.plugin != nil {
				conf.Plugin = c.plugin
			}
		},
		callers: c.callers,
		tasks:   c.tasks,
	}, nil
}

// Reviews a second, and at once: the nodes of a large mesh that all connect
// when this program starts, while who tries tokens that are none cannot make
// the API server work without end.
const (
	reviewRate  = 200
	reviewBurst = 1000
)

// callers asks the API server who calls. It does so by a client of its own:
// nodes that all connect at once would use up the rate of everything else, and
// wait in it for longer than they may.
func (c *cluster) callers() (auth.Authenticator, error) {
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

// adopt takes from the mesh configuration what no flag says.
func (c *cluster) adopt() error {
	m := c.mesh.config()
	if m.TrustDomain != "" && !c.cfg.set["trust-domain"] {
		c.cfg.trustDomain = m.TrustDomain
	}
	if m.RootNamespace != "" && !c.cfg.set["root-namespace"] {
		c.cfg.rootNamespace = m.RootNamespace
	}
	if !c.cfg.set["trust-domain-alias"] {
		c.cfg.trustDomainAliases = m.TrustDomainAliases
	}
	c.scope.set(m.DiscoverySelectors)
	probe := identity.Identity{TrustDomain: c.cfg.trustDomain, Namespace: "a", ServiceAccount: "b"}
	if err := probe.Validate(); err != nil {
		return fmt.Errorf("trustDomain of --mesh-config: %w", err)
	}
	return nil
}

func (c *cluster) tasks() []func(context.Context) error {
	texts := map[trust.Document]func() ([]byte, <-chan struct{}){trust.Roots: c.authority.Bundle}
	tasks := []func(context.Context) error{
		c.store.Run,
		c.elected(leaseCA, func(ctx context.Context) error { c.authority.Lead(ctx); return nil }),
		c.elected(leaseTrust, func(ctx context.Context) error {
			return trust.Run(ctx, trust.Options{
				Client: c.client, Texts: texts, Selected: c.scope.selects, Reselect: c.scope.changed, Logger: c.logs.Logger("trust"),
			})
		}),
		c.elected(leaseStatus, func(ctx context.Context) error { return c.writeStatus(ctx, c.registry.Verdicts) }),
	}
	if c.cfg.kube.revision != "" {
		tasks = append(tasks, c.elected(fmt.Sprintf(leaseNamed, c.cfg.kube.revision), func(ctx context.Context) error { return c.writeStatus(ctx, c.registry.NamedVerdicts) }))
	}
	if c.plugin != nil {
		lists := castore.NewRevocations(c.plugin, mtls.CheckCRL, c.logs.Logger("trust"))
		texts[trust.Revocations] = lists.Text
		tasks = append(tasks, c.plugin.Run, lists.Run)
	}
	if c.mesh != nil {
		tasks = append(tasks, c.followMesh)
	}
	if ln := c.listeners["webhook"]; ln != nil {
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

// othersSign tells whether another replica leads the CA.
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

// writeStatus writes verdicts. It begins when everything is known: half of the
// configuration would give wrong answers.
func (c *cluster) writeStatus(ctx context.Context, verdicts *registry.Verdicts) error {
	select {
	case <-ctx.Done():
		return nil
	case <-c.synced:
	}
	return statuswriter.Run(ctx, statuswriter.Options{Dynamic: c.client.Dynamic, Verdicts: verdicts, Logger: c.logs.Logger("status")})
}

func (c *cluster) serveWebhook(ctx context.Context, ln net.Listener) error {
	service := "istiod"
	if r := c.cfg.kube.revision; r != "" && r != wellknown.DefaultRevision {
		service += "-" + r
	}
	return webhook.Run(ctx, webhook.Options{
		Client: c.client, Namespace: c.cfg.kube.namespace, ServiceName: service, Revision: c.cfg.kube.revision,
		RootNamespace: c.cfg.rootNamespace, Addresses: c.registry, Listen: ln, Certificate: c.authority.ServingConfig, CABundle: c.authority.Bundle,
		Logger: c.logs.Logger("webhook"), Registerer: c.metrics,
	})
}

// followMesh takes over what may change in the mesh configuration at run time.
func (c *cluster) followMesh(ctx context.Context) error {
	return c.mesh.watch(ctx, func() {
		m := c.mesh.config()
		for what, changed := range map[string]bool{
			"trustDomain":   m.TrustDomain != "" && m.TrustDomain != c.cfg.trustDomain,
			"rootNamespace": m.RootNamespace != "" && m.RootNamespace != c.cfg.rootNamespace,
		} {
			if changed {
				c.logs.Logger("mesh").Warn("a change of the mesh configuration takes effect when this program is restarted", "field", what)
			}
		}
		if !c.cfg.set["trust-domain-alias"] {
			c.registry.SetTrustDomainAliases(m.TrustDomainAliases)
		}
		c.registry.SetVisibility(m.ServiceEntryVisibility)
		c.scope.set(m.DiscoverySelectors)
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

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/control/deploy"
	"github.com/ambit-mesh/ambit/internal/control/jwks"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// config is the command line.
type config struct {
	configDirs, serverNames, revisionTags, trustDomainAliases list
	trustedNodeAccounts, directoryReaders                     list

	statusDir, stateDir, pluginDir     string
	listen, plaintextListen            string
	monitor, admin                     string
	trustDomain, clusterID, network    string
	rootNamespace, logLevel, logFormat string
	waypointBypass                     string

	certTTL, maxCertTTL, rotationMargin time.Duration

	keys keysConfig
	kube kubeConfig
	set  map[string]bool // flags that were given
}

// kubeConfig is the part of the command line that is for Kubernetes.
type kubeConfig struct {
	enabled                   bool
	kubeconfig, namespace     string
	meshConfig, webhookListen string
	audience, revision        string
	taint, taintNamespace     string
	waypointImage             string
	waypointResources         resources
	waypointDeployment        string
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(s string) error {
	if s == "" {
		return errors.New("empty")
	}
	*l = append(*l, s)
	return nil
}

// resources is a flag with the resources of a container.
type resources struct{ *corev1.ResourceRequirements }

func (r *resources) String() string {
	if r.ResourceRequirements == nil {
		return ""
	}
	b, _ := json.Marshal(r.ResourceRequirements) // was JSON
	return string(b)
}

func (r *resources) Set(s string) error {
	if s == "" || s == "null" {
		return nil
	}
	r.ResourceRequirements = &corev1.ResourceRequirements{}
	d := json.NewDecoder(strings.NewReader(s))
	d.DisallowUnknownFields()
	return d.Decode(r.ResourceRequirements)
}

func parseFlags(args []string, out io.Writer) (config, error) {
	var c config
	f := flag.NewFlagSet("ambitd", flag.ContinueOnError)
	f.SetOutput(out)
	f.Var(&c.configDirs, "config-dir", "directory of YAML to read and watch; may be repeated")
	f.StringVar(&c.statusDir, "status-dir", "", "directory where status of these objects is written (by the lab and the node agents)")
	f.StringVar(&c.stateDir, "state-dir", "", "directory for keys and roots; root-cert.pem in it is what clients trust")
	f.StringVar(&c.pluginDir, "ca-dir", "", "directory of a plugged-in CA: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem")
	f.StringVar(&c.listen, "listen", ":"+strconv.Itoa(wellknown.PortXDS), "address of xDS and CA, with TLS")
	f.StringVar(&c.plaintextListen, "plaintext-listen", "", "address of xDS without TLS; none when empty")
	f.StringVar(&c.monitor, "monitor", ":"+strconv.Itoa(wellknown.PortControlMonitor), "address of metrics and health")
	f.StringVar(&c.admin, "admin", "127.0.0.1:"+strconv.Itoa(wellknown.PortControlDebug), "address of debugging")
	f.StringVar(&c.trustDomain, "trust-domain", identity.DefaultTrustDomain, "trust domain of the mesh")
	f.Var(&c.trustDomainAliases, "trust-domain-alias", "another name of the trust domain, which policies may use in principals; may be repeated")
	f.StringVar(&c.clusterID, "cluster-id", cmp.Or(os.Getenv("CLUSTER_ID"), wellknown.DefaultCluster), "name of this cluster")
	f.StringVar(&c.network, "network", "", "network of what does not say otherwise")
	f.StringVar(&c.rootNamespace, "root-namespace", wellknown.SystemNamespace, "namespace whose policies hold for the whole mesh")
	f.StringVar(&c.waypointBypass, "waypoint-bypass", wellknown.WaypointBypassDeny, "deny or allow: whether traffic may go around the waypoint that a label names, as it may with Istio; the annotation "+wellknown.AnnotationWaypointBypass+" decides for one object or namespace")
	f.Var(&c.serverNames, "server-name", "name or IP address in the serving certificate, beside the usual ones; may be repeated")
	f.Var(&c.trustedNodeAccounts, "trusted-node-account", "namespace/account of node proxies, which may ask for certificates of pods on their node; may be repeated (default ztunnel in the root namespace, or in --namespace)")
	f.Var(&c.directoryReaders, "directory-reader", "namespace/account that may read all addresses and policies, as node proxies may: for a proxy of a workload's own, or a tool; may be repeated")
	f.DurationVar(&c.certTTL, "cert-ttl", ca.DefaultTTL, "life of certificates whose owners ask for none in particular, and the longest that node proxies get")
	f.DurationVar(&c.maxCertTTL, "max-cert-ttl", ca.MaxTTL, "longest life of a certificate of anybody but a node proxy; a change of the root takes about twice the longest that was given")
	f.DurationVar(&c.rotationMargin, "rotation-margin", ca.DefaultMargin, "time added to each stage of a change of the root, for clocks that differ and for the way of root-cert.pem to its readers")
	f.DurationVar(&c.keys.refresh, "jwks-refresh", jwks.DefaultRefresh, "how old the keys of issuers of tokens become before they are fetched again")
	f.Var(&c.keys.blocked, "jwks-blocked-cidr", "addresses that these keys are not fetched from, beside those of this program, link-local ones and metadata of clouds; may be repeated")
	f.StringVar(&c.keys.roots, "jwks-ca-file", "", "file with roots of the servers of these keys, in PEM, beside the system's")
	f.StringVar(&c.logLevel, "log-level", "info", "level, or scope=level,…")
	f.StringVar(&c.logFormat, "log-format", "plain", "plain or json")
	f.BoolVar(&c.kube.enabled, "kubernetes", false, "read the Kubernetes API instead of --config-dir, and keep state there")
	f.StringVar(&c.kube.kubeconfig, "kubeconfig", "", "kubeconfig of the cluster; default: the one this pod runs in, else kubectl's")
	f.StringVar(&c.kube.namespace, "namespace", cmp.Or(os.Getenv("POD_NAMESPACE"), wellknown.SystemNamespace), "namespace of this program: its Secrets, leases and Services")
	f.StringVar(&c.kube.meshConfig, "mesh-config", "", "file with Istio's MeshConfig, of which trustDomain, trustDomainAliases, rootNamespace, discoverySelectors, serviceEntryVisibility, extensionProviders and what is about telemetry count")
	f.StringVar(&c.kube.webhookListen, "webhook-listen", ":"+strconv.Itoa(wellknown.PortControlWebhook), "address of the validating webhook, with TLS; none when empty")
	f.StringVar(&c.kube.audience, "token-audience", wellknown.TokenAudience, "audience that service account tokens must be issued for")
	f.StringVar(&c.kube.taint, "untaint", "", "key of the taint to remove from nodes whose agent and proxy are ready; none when empty")
	f.StringVar(&c.kube.taintNamespace, "untaint-namespace", "", "namespace of that agent and proxy (default: --namespace)")
	f.StringVar(&c.kube.waypointImage, "waypoint-image", "", "image of the proxies that are run for Gateways of class "+wellknown.ClassWaypoint+"; none are run when empty")
	f.Var(&c.kube.waypointResources, "waypoint-resources", "resources of such a proxy's container, as JSON of the field resources; Istio's when empty")
	f.Func("waypoint-deployment", "what is changed of the Deployments of such proxies, as JSON that is merged into them", func(s string) error {
		c.kube.waypointDeployment = s
		return deploy.CheckDeployment(s)
	})
	f.StringVar(&c.kube.revision, "revision", "", "revision of this control plane: objects labelled "+wellknown.LabelRevision+" for another are not looked at; all are when empty")
	f.Var(&c.revisionTags, "revision-tag", "another name of this revision; may be repeated")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	c.set = map[string]bool{}
	f.Visit(func(given *flag.Flag) { c.set[given.Name] = true })
	if f.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	return c, c.complete()
}

// complete checks and fills in.
func (c *config) complete() error {
	if err := c.place(); err != nil {
		return err
	}
	if b := c.waypointBypass; b != wellknown.WaypointBypassDeny && b != wellknown.WaypointBypassAllow {
		return fmt.Errorf("--waypoint-bypass %q: it must be deny or allow", b)
	}
	if len(c.revisionTags) > 0 && c.kube.revision == "" {
		return fmt.Errorf("--revision-tag %s needs --revision: without one this control plane looks at everything, whatever it is labelled", c.revisionTags[0])
	}
	probe := identity.Identity{TrustDomain: c.trustDomain, Namespace: "a", ServiceAccount: "b"}
	if err := probe.Validate(); err != nil {
		return fmt.Errorf("--trust-domain: %w", err)
	}
	if err := meshconfig.CheckTrustDomains(c.trustDomainAliases); err != nil {
		return fmt.Errorf("--trust-domain-alias: %w", err)
	}
	if c.certTTL < ca.MinTTL || c.maxCertTTL < c.certTTL {
		return fmt.Errorf("--cert-ttl %s and --max-cert-ttl %s: the first must be at least %s, the second no less", c.certTTL, c.maxCertTTL, ca.MinTTL)
	}
	if err := c.keys.check(); err != nil {
		return err
	}
	if c.rotationMargin <= 0 {
		return fmt.Errorf("--rotation-margin %s: no two clocks are the same", c.rotationMargin)
	}
	if len(c.trustedNodeAccounts) == 0 {
		c.trustedNodeAccounts = list{c.home() + "/ztunnel"}
	}
	for flag, accounts := range map[string]list{"trusted-node-account": c.trustedNodeAccounts, "directory-reader": c.directoryReaders} {
		for _, a := range accounts {
			if ns, sa, ok := strings.Cut(a, "/"); !ok || ns == "" || sa == "" || strings.Contains(sa, "/") {
				return fmt.Errorf("--%s %q is not namespace/account", flag, a)
			}
		}
	}
	c.serverNames = append(c.serverNames, defaultNames(c.home(), c.kube.revision)...)
	slices.Sort(c.serverNames)
	c.serverNames = slices.Compact(c.serverNames)
	return nil
}

// place checks where configuration and state are.
func (c *config) place() error {
	switch {
	case c.kube.enabled && (len(c.configDirs) > 0 || c.statusDir != "" || c.stateDir != ""):
		return errors.New("--kubernetes excludes --config-dir, --status-dir and --state-dir: configuration and state are in the cluster")
	case c.kube.enabled:
		return nil
	case len(c.configDirs) == 0:
		return errors.New("--config-dir is needed: the directory with the YAML of the mesh; or --kubernetes")
	case c.stateDir == "":
		return errors.New("--state-dir is needed: keys must survive a restart")
	}
	for _, name := range []string{"kubeconfig", "webhook-listen", "untaint", "untaint-namespace", "token-audience", "waypoint-image", "waypoint-resources"} {
		if c.set[name] {
			return fmt.Errorf("--%s needs --kubernetes", name)
		}
	}
	return nil
}

// revisions are all names of this control plane; none when it is the only one.
func (c *config) revisions() []string {
	if c.kube.revision == "" {
		return nil
	}
	return append([]string{c.kube.revision}, c.revisionTags...)
}

// home is the namespace that the mesh's own programs are in.
func (c *config) home() string {
	if c.kube.enabled {
		return c.kube.namespace
	}
	return c.rootNamespace
}

// defaultNames are those that clients of either project know the control
// plane by.
func defaultNames(namespace, revision string) []string {
	names := []string{"localhost", "127.0.0.1", "::1"}
	services := []string{"istiod", "ambitd"}
	if revision != "" && revision != wellknown.DefaultRevision {
		services = append(services, "istiod-"+revision, "ambitd-"+revision)
	}
	for _, svc := range services {
		names = append(names, svc+"."+namespace+".svc", svc+"."+namespace+".svc."+wellknown.DefaultDomain)
	}
	if h, err := os.Hostname(); err == nil && h != "" && !strings.ContainsAny(h, " /:@") {
		names = append(names, h)
	}
	return names
}

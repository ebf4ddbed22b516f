package check

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"

	"github.com/ambit-mesh/ambit/charts"
	"github.com/ambit-mesh/ambit/internal/control/meshconfig"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// pageSize bounds one answer of the API server.
const pageSize = 500

// gatherer looks at a cluster; what cannot be seen is noted, not fatal.
type gatherer struct {
	*client.Client
	ctx context.Context
	s   *Snapshot
}

// Gather looks at a cluster. The error is of an API server that does not
// answer at all.
func Gather(ctx context.Context, c *client.Client, namespace, version string) (*Snapshot, error) {
	g := &gatherer{c, ctx, &Snapshot{Namespace: namespace, Version: version}}
	d, err := discovery.NewDiscoveryClientForConfig(c.Config)
	if err != nil {
		return nil, err
	}
	v, err := d.ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("ask the API server for its version: %w", err)
	}
	g.s.ServerVersion = v.GitVersion
	for _, look := range []func() error{g.permissions, g.nodes, g.namespaces, g.mesh, g.workloads, g.pods, g.policies, g.network, g.kinds, g.certificates, g.webhooks} {
		if err := look(); err != nil {
			g.s.Unseen = append(g.s.Unseen, err.Error())
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return g.s, nil
}

// needed are samples of what installing does: who may do these may do the rest.
var needed = []authorizationv1.ResourceAttributes{
	{Verb: "create", Resource: "namespaces"},
	{Verb: "patch", Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"},
	{Verb: "patch", Group: "rbac.authorization.k8s.io", Resource: "clusterroles"},
	{Verb: "patch", Group: "admissionregistration.k8s.io", Resource: "validatingwebhookconfigurations"},
	{Verb: "patch", Group: "admissionregistration.k8s.io", Resource: "validatingadmissionpolicies"},
	{Verb: "patch", Group: "apps", Resource: "daemonsets", Namespace: "*"},
	{Verb: "patch", Group: "apps", Resource: "deployments", Namespace: "*"},
}

func (g *gatherer) permissions() error {
	for _, attributes := range needed {
		if attributes.Namespace == "*" {
			attributes.Namespace = g.s.Namespace
		}
		answer, err := g.Kube.AuthorizationV1().SelfSubjectAccessReviews().Create(g.ctx, &authorizationv1.SelfSubjectAccessReview{
			Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &attributes},
		}, metav1.CreateOptions{})
		if err != nil {
			return fmt.Errorf("what you may do: %w", err)
		}
		if !answer.Status.Allowed {
			g.s.Denied = append(g.s.Denied, attributes.Verb+" "+attributes.Resource)
		}
	}
	return nil
}

func (g *gatherer) nodes() error {
	list, err := g.Kube.CoreV1().Nodes().List(g.ctx, metav1.ListOptions{})
	if err == nil {
		g.s.Nodes = list.Items
	}
	return err
}

func (g *gatherer) namespaces() error {
	list, err := g.Kube.CoreV1().Namespaces().List(g.ctx, metav1.ListOptions{})
	if err == nil {
		g.s.Namespaces = list.Items
	}
	return err
}

func (g *gatherer) workloads() error {
	daemons, err := g.Kube.AppsV1().DaemonSets("").List(g.ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	g.s.DaemonSets = daemons.Items
	deployments, err := g.Kube.AppsV1().Deployments(g.s.Namespace).List(g.ctx, metav1.ListOptions{})
	if err == nil {
		g.s.Deployments = deployments.Items
	}
	return err
}

// pods reads those that matter: the mesh's, those of namespaces in the mesh,
// and those that are in it by a label of their own.
func (g *gatherer) pods() error {
	if err := g.podsOf(g.s.Namespace, ""); err != nil {
		return err
	}
	in := map[string]bool{g.s.Namespace: true}
	for _, ns := range g.s.Namespaces {
		if ns.Labels[wellknown.LabelDataplaneMode] == wellknown.DataplaneModeAmbient && !in[ns.Name] {
			in[ns.Name] = true
			if err := g.podsOf(ns.Name, ""); err != nil {
				return err
			}
		}
	}
	var single Snapshot
	other := &gatherer{g.Client, g.ctx, &single}
	if err := other.podsOf("", wellknown.LabelDataplaneMode+"="+wellknown.DataplaneModeAmbient); err != nil {
		return err
	}
	g.s.Pods = append(g.s.Pods, slices.DeleteFunc(single.Pods, func(p corev1.Pod) bool { return in[p.Namespace] })...)
	return nil
}

func (g *gatherer) podsOf(namespace, selector string) error {
	opts := metav1.ListOptions{LabelSelector: selector, Limit: pageSize}
	for {
		list, err := g.Kube.CoreV1().Pods(namespace).List(g.ctx, opts)
		if err != nil {
			return err
		}
		g.s.Pods = append(g.s.Pods, list.Items...)
		if opts.Continue = list.Continue; opts.Continue == "" {
			return nil
		}
	}
}

func (g *gatherer) policies() error {
	list, err := g.Kube.NetworkingV1().NetworkPolicies("").List(g.ctx, metav1.ListOptions{})
	if err == nil {
		g.s.NetworkPolicies = list.Items
	}
	return err
}

// network reads the settings of network plugins that are known to matter.
func (g *gatherer) network() error {
	for _, d := range g.s.DaemonSets {
		switch d.Name {
		case "cilium":
			m, err := g.Kube.CoreV1().ConfigMaps(d.Namespace).Get(g.ctx, "cilium-config", metav1.GetOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return err
			}
			if err == nil {
				g.s.Cilium = m.Data
			}
		case "calico-node":
			felix := schema.GroupVersionResource{Group: "crd.projectcalico.org", Version: "v1", Resource: "felixconfigurations"}
			f, err := g.Dynamic.Resource(felix).Get(g.ctx, "default", metav1.GetOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return err
			}
			if err == nil {
				g.s.CalicoEBPF, _, _ = unstructured.NestedBool(f.Object, "spec", "bpfEnabled")
			}
		}
	}
	return nil
}

// gatewayRelease is where kinds of the Gateway API say of which release they
// are.
const gatewayRelease = "gateway.networking.k8s.io/bundle-version"

func (g *gatherer) kinds() error {
	for _, dir := range []string{"crds/ambit", "crds/istio"} {
		files, err := fs.Glob(charts.FS, "base/files/"+dir+"/*.yaml")
		if err != nil {
			return err
		}
		for _, f := range files {
			g.s.WantedKinds = append(g.s.WantedKinds, strings.TrimSuffix(path.Base(f), ".yaml"))
		}
	}
	crds := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	list, err := g.Dynamic.Resource(crds).List(g.ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	g.s.Kinds = map[string]string{}
	for _, crd := range list.Items {
		if name := crd.GetName(); strings.HasSuffix(name, ".istio.io") || strings.HasSuffix(name, ".ambit.mesh") || strings.HasSuffix(name, ".gateway.networking.k8s.io") {
			g.s.Kinds[name] = crd.GetAnnotations()[gatewayRelease]
		}
	}
	return nil
}

// mesh reads which namespaces the control plane looks at.
func (g *gatherer) mesh() error {
	m, err := g.Kube.CoreV1().ConfigMaps(g.s.Namespace).Get(g.ctx, "istio", metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	cfg, _, err := meshconfig.Parse([]byte(m.Data["mesh"]))
	if err != nil {
		return fmt.Errorf("ConfigMap %s/%s: %w", m.Namespace, m.Name, err)
	}
	g.s.Discovery = cfg.Discovery(g.s.Namespace, cfg.RootNamespace)
	return nil
}

func (g *gatherer) certificates() error {
	m, err := g.Kube.CoreV1().ConfigMaps(g.s.Namespace).Get(g.ctx, "istio-ca-root-cert", metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		g.s.Certificates = append(g.s.Certificates, Certificate{Object: "ConfigMap " + g.s.Namespace + "/istio-ca-root-cert", Problem: "is not there: the control plane has not published its root yet, and node proxies cannot start"})
	case err != nil:
		return err
	default:
		g.pem("ConfigMap "+m.Namespace+"/"+m.Name, []byte(m.Data["root-cert.pem"]))
	}
	var errs []error
	for _, name := range []string{"istio-ca-secret", "cacerts"} {
		secret, err := g.Kube.CoreV1().Secrets(g.s.Namespace).Get(g.ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		g.pem("Secret "+secret.Namespace+"/"+secret.Name, secret.Data["ca-cert.pem"])
	}
	return errors.Join(errs...)
}

// pem notes every certificate of a bundle.
func (g *gatherer) pem(object string, rest []byte) {
	found := false
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		found = true
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			g.s.Certificates = append(g.s.Certificates, Certificate{Object: object, Problem: err.Error()})
			continue
		}
		name := cert.Subject.String()
		if name == "" {
			name = "certificate " + cert.SerialNumber.String()
		}
		g.s.Certificates = append(g.s.Certificates, Certificate{Object: object, Name: name, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter})
	}
	if !found {
		g.s.Certificates = append(g.s.Certificates, Certificate{Object: object, Problem: "holds no certificate"})
	}
}

func (g *gatherer) webhooks() error {
	list, err := g.Kube.AdmissionregistrationV1().ValidatingWebhookConfigurations().List(g.ctx, metav1.ListOptions{LabelSelector: "app=istiod,app.kubernetes.io/part-of=ambit"})
	if err != nil {
		return err
	}
	for _, c := range list.Items {
		for _, w := range c.Webhooks {
			policy := ""
			if w.FailurePolicy != nil {
				policy = string(*w.FailurePolicy)
			}
			selector, err := metav1.LabelSelectorAsSelector(w.ObjectSelector)
			if err != nil {
				return fmt.Errorf("webhook %s of %s: %w", w.Name, c.Name, err)
			}
			g.s.Webhooks = append(g.s.Webhooks, Webhook{
				Object:     "ValidatingWebhookConfiguration " + c.Name + " " + w.Name,
				Unlabelled: selector.Matches(labels.Set{}), HasBundle: len(w.ClientConfig.CABundle) > 0, Policy: policy,
			})
		}
	}
	return nil
}

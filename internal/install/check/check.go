// Package check tells what speaks for and against a mesh in a cluster, before
// it is installed and afterwards. Looking at the cluster (Gather) and judging
// what was seen (Judge) are apart: the judgement is a function of values.
package check

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Level is how bad a finding is.
type Level string

// The levels, the worst first.
const (
	Error   Level = "error"   // the mesh does not work, or something breaks
	Warning Level = "warning" // it may, or something is not as it should be
	Info    Level = "info"    // worth knowing
	OK      Level = "ok"
)

// Finding is one result.
type Finding struct {
	Level   Level  `json:"level"`
	Check   string `json:"check"`
	Object  string `json:"object,omitempty"`
	Message string `json:"message"`
	Next    string `json:"next,omitempty"` // what to do about it
}

// Worst is the worst level of findings.
func Worst(all []Finding) Level {
	order := []Level{Error, Warning, Info}
	for _, l := range order {
		for _, f := range all {
			if f.Level == l {
				return l
			}
		}
	}
	return OK
}

// Snapshot is what was seen of a cluster.
type Snapshot struct {
	Namespace string // of the mesh
	Version   string // of this program

	ServerVersion string
	Denied        []string // what whoever asks may not do that installing needs
	// Unseen says what could not be looked at, and why.
	Unseen []string

	Nodes      []corev1.Node
	Namespaces []corev1.Namespace
	// Discovery are the selectors of the namespaces that the control plane looks
	// at, its own among them; none: all.
	Discovery       []metav1.LabelSelector
	Pods            []corev1.Pod // of the mesh's namespace and of those with enrolled pods
	DaemonSets      []appsv1.DaemonSet
	Deployments     []appsv1.Deployment // of the mesh's namespace
	NetworkPolicies []networkingv1.NetworkPolicy

	Cilium map[string]string // its ConfigMap, nil without one
	// CalicoEBPF is set when Calico's data plane is eBPF.
	CalicoEBPF bool
	// Kinds are the CRDs of the mesh and of the Gateway API by name, with the
	// release they say they are of.
	Kinds map[string]string
	// WantedKinds are the names of those that the mesh reads.
	WantedKinds []string

	Certificates []Certificate
	Webhooks     []Webhook
}

// Certificate is one that the mesh depends on.
type Certificate struct {
	Object              string
	Name                string
	NotBefore, NotAfter time.Time
	Problem             string // why it could not be read
}

// Webhook is one admission webhook of the mesh.
type Webhook struct {
	// Unlabelled reports whether it is asked about objects without a revision.
	Unlabelled bool
	Object     string
	HasBundle  bool
	Policy     string
}

// installed reports whether anything of Ambit is installed: Istio's control plane may
// serve our agents and proxies, as ours may serve Istio's proxies.
func (s *Snapshot) installed() bool { return len(s.control())+len(s.daemons()) > 0 }

// control is our control plane, and istios is Istio's beside it.
func (s *Snapshot) control() []appsv1.Deployment { return s.istiods(true) }
func (s *Snapshot) istios() []appsv1.Deployment  { return s.istiods(false) }

func (s *Snapshot) istiods(ours bool) []appsv1.Deployment {
	var out []appsv1.Deployment
	for _, d := range s.Deployments {
		is := d.Labels["app"] == "istiod" || d.Spec.Template.Labels["app"] == "istiod"
		if is && (d.Labels["app.kubernetes.io/part-of"] == "ambit") == ours {
			out = append(out, d)
		}
	}
	return out
}

// daemons are node agents and node proxies of Ambit.
func (s *Snapshot) daemons() []appsv1.DaemonSet {
	var out []appsv1.DaemonSet
	for _, d := range s.DaemonSets {
		if d.Namespace == s.Namespace && d.Labels["app.kubernetes.io/part-of"] == "ambit" {
			out = append(out, d)
		}
	}
	return out
}

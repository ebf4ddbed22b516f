package check

import (
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

var now = time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)

// good is a cluster with a mesh that has nothing wrong with it.
func good() *Snapshot {
	ours := map[string]string{"app": "istiod", "app.kubernetes.io/part-of": "ambit", "app.kubernetes.io/version": "v1.2.0"}
	daemon := func(name string) appsv1.DaemonSet {
		return appsv1.DaemonSet{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "istio-system", Labels: map[string]string{"app.kubernetes.io/part-of": "ambit", "app.kubernetes.io/version": "v1.2.0"}},
			Spec:       appsv1.DaemonSetSpec{Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app.kubernetes.io/name": name}}}},
			Status:     appsv1.DaemonSetStatus{DesiredNumberScheduled: 1, NumberAvailable: 1},
		}
	}
	return &Snapshot{
		Namespace: "istio-system", Version: "v1.2.0", ServerVersion: "v1.33.1",
		Nodes: []corev1.Node{{
			ObjectMeta: metav1.ObjectMeta{Name: "n1"},
			Status: corev1.NodeStatus{
				NodeInfo:   corev1.NodeSystemInfo{OperatingSystem: "linux", Architecture: "amd64", KernelVersion: "6.8.0-45-generic"},
				Conditions: []corev1.NodeCondition{{Type: ConditionRedirection, Status: corev1.ConditionTrue}},
			},
		}},
		Namespaces:   []corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"istio.io/dataplane-mode": "ambient"}}}, {ObjectMeta: metav1.ObjectMeta{Name: "other"}}},
		Pods:         []corev1.Pod{pod("shop", "web", nil)},
		Deployments:  []appsv1.Deployment{{ObjectMeta: metav1.ObjectMeta{Name: "ambitd", Namespace: "istio-system", Labels: ours}, Status: appsv1.DeploymentStatus{AvailableReplicas: 1}}},
		DaemonSets:   []appsv1.DaemonSet{daemon("ambit-cni"), daemon("ztunnel")},
		Kinds:        map[string]string{"authorizationpolicies.security.istio.io": ""},
		WantedKinds:  []string{"authorizationpolicies.security.istio.io"},
		Certificates: []Certificate{{Object: "ConfigMap r", Name: "root", NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(9, 0, 0)}},
		Webhooks:     []Webhook{{Object: "w", Unlabelled: true, HasBundle: true, Policy: "Fail"}},
	}
}

func pod(namespace, name string, labels map[string]string) corev1.Pod {
	if labels == nil {
		labels = map[string]string{"app": name}
	}
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels, Annotations: map[string]string{"ambient.istio.io/redirection": "enabled"}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

func TestNothingIsWrong(t *testing.T) {
	found := Judge(good(), now)
	if Worst(found) != OK {
		t.Errorf("%+v", found)
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Snapshot)
		level  Level
		check  string
		want   string // in the message
	}{
		{"old Kubernetes", func(s *Snapshot) { s.ServerVersion = "v1.27.3" }, Error, "kubernetes", "too old"},
		{"vendor's version", func(s *Snapshot) { s.ServerVersion = "v1.31.2-gke.100" }, OK, "kubernetes", "v1.31.2-gke.100"},
		{"no rights", func(s *Snapshot) { s.Denied = []string{"patch clusterroles"} }, Error, "permissions", "patch clusterroles"},
		{"old kernel", func(s *Snapshot) { s.Nodes[0].Status.NodeInfo.KernelVersion = "4.18.0-553.el8.x86_64" }, Error, "nodes", "too old"},
		{"large packets", func(s *Snapshot) {
			s.Nodes[0].Status.Conditions[0].Message = "works" + wellknown.ConditionLargePackets + "setting pod; eth0: packets of at most 65536 bytes"
		}, Info, "large packets", "setting pod; eth0: packets of at most 65536 bytes"},
		{"Windows", func(s *Snapshot) { s.Nodes[0].Status.NodeInfo.OperatingSystem = "windows" }, Info, "nodes", "never in the mesh"},
		{"exclusive Cilium", func(s *Snapshot) { s.Cilium = map[string]string{"cni-exclusive": "true"} }, Error, "cni", "removes the mesh's CNI plugin"},
		{"Cilium at the socket", func(s *Snapshot) { s.Cilium = map[string]string{"kube-proxy-replacement": "true"} }, Error, "cni", "at the socket"},
		{"Calico eBPF", func(s *Snapshot) { s.CalicoEBPF = true }, Warning, "cni", "eBPF"},
		{"kinds missing", func(s *Snapshot) { s.Kinds = nil }, Error, "kinds", "authorizationpolicies"},
		{"another agent", func(s *Snapshot) {
			s.DaemonSets = append(s.DaemonSets, appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Name: "istio-cni-node", Namespace: "kube-system", Labels: map[string]string{"k8s-app": "istio-cni-node"}}})
		}, Error, "other meshes", "two agents"},
		{"not ready", func(s *Snapshot) { s.DaemonSets[1].Status.NumberAvailable = 0 }, Error, "installation", "0 of 1 ready"},
		{"scaled away", func(s *Snapshot) {
			s.Deployments[0].Spec.Replicas = ptr.To[int32](0)
			s.Deployments[0].Status.AvailableReplicas = 0
		}, Error, "installation", "0 of 0 ready"},
		{"no proxy", func(s *Snapshot) { s.DaemonSets = s.DaemonSets[:1] }, Warning, "installation", "no ztunnel"},
		{"versions apart", func(s *Snapshot) { s.Version = "v1.4.0" }, Warning, "versions", "more than one minor version"},
		{"redirection fails", func(s *Snapshot) {
			s.Nodes[0].Status.Conditions[0] = corev1.NodeCondition{Type: ConditionRedirection, Status: corev1.ConditionFalse, Reason: "SelfTestFailed", Message: "no nft"}
		}, Error, "redirection", "SelfTestFailed: no nft"},
		{"redirection unknown", func(s *Snapshot) { s.Nodes[0].Status.Conditions = nil }, Warning, "redirection", "not said yet"},
		{"certificate over", func(s *Snapshot) { s.Certificates[0].NotAfter = now.Add(-time.Hour) }, Error, "certificates", "ended"},
		{"certificate ends", func(s *Snapshot) { s.Certificates[0].NotAfter = now.Add(72 * time.Hour) }, Warning, "certificates", "in 3 days"},
		{"certificate of tomorrow", func(s *Snapshot) { s.Certificates[0].NotBefore = now.Add(time.Hour) }, Error, "certificates", "valid only from"},
		{"no default revision", func(s *Snapshot) { s.Webhooks[0].Unlabelled = false }, Warning, "admission", "no control plane is the default one"},
		{"webhook not reached", func(s *Snapshot) { s.Webhooks[0].HasBundle = false }, Warning, "admission", "certificate"},
		{"not enrolled", func(s *Snapshot) { s.Pods[0].Annotations = nil }, Warning, "pods", "not in it"},
		{"not discovered", func(s *Snapshot) {
			s.Discovery = []metav1.LabelSelector{{MatchLabels: map[string]string{"team": "a"}}}
		}, Warning, "namespaces", "discoverySelectors"},
		{"nothing installed", func(s *Snapshot) { s.Deployments, s.DaemonSets = nil, nil }, Info, "installation", "no mesh is installed"},
		{"no control plane", func(s *Snapshot) { s.Deployments = nil }, Warning, "installation", "no control plane"},
		{"Istio's control plane instead", func(s *Snapshot) { s.Deployments[0].Labels = map[string]string{"app": "istiod"} }, Info, "other meshes", "serves this mesh"},
		{"Istio's control plane as well", func(s *Snapshot) {
			s.Deployments = append(s.Deployments, appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "istiod", Namespace: "istio-system", Labels: map[string]string{"app": "istiod"}}})
		}, Warning, "other meshes", "in the mesh's namespace"},
		{"could not look", func(s *Snapshot) { s.Unseen = []string{"secrets: forbidden"} }, Warning, "access", "forbidden"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := good()
			c.change(s)
			for _, f := range Judge(s, now) {
				if f.Level == c.level && f.Check == c.check && strings.Contains(f.Message, c.want) {
					return
				}
			}
			t.Errorf("no %s of %s with %q in %+v", c.level, c.check, c.want, Judge(s, now))
		})
	}
}

func TestNetworkPolicies(t *testing.T) {
	tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
	port := func(proto *corev1.Protocol, p int, end int32) networkingv1.NetworkPolicyPort {
		v := intstr.FromInt32(int32(p))
		out := networkingv1.NetworkPolicyPort{Protocol: proto, Port: &v}
		if end > 0 {
			out.EndPort = &end
		}
		return out
	}
	named := intstr.FromString("http")
	ingress := func(ports ...networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicy {
		return networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}, Spec: networkingv1.NetworkPolicySpec{
			Ingress: []networkingv1.NetworkPolicyIngressRule{{Ports: ports}},
		}}
	}
	egress := func(ports ...networkingv1.NetworkPolicyPort) networkingv1.NetworkPolicy {
		return networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p"}, Spec: networkingv1.NetworkPolicySpec{
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
			Egress:      []networkingv1.NetworkPolicyEgressRule{{Ports: ports}},
		}}
	}
	elsewhere := ingress(port(&tcp, 80, 0))
	elsewhere.Spec.PodSelector.MatchLabels = map[string]string{"app": "db"}
	denyAll := networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "deny"}}
	for _, c := range []struct {
		name     string
		policies []networkingv1.NetworkPolicy
		pod      corev1.Pod
		blocked  bool
	}{
		{"no policy", nil, pod("shop", "web", nil), false},
		{"the program's port only", []networkingv1.NetworkPolicy{ingress(port(&tcp, 80, 0))}, pod("shop", "web", nil), true},
		{"a named port only", []networkingv1.NetworkPolicy{ingress(networkingv1.NetworkPolicyPort{Port: &named})}, pod("shop", "web", nil), true},
		{"all ports", []networkingv1.NetworkPolicy{ingress()}, pod("shop", "web", nil), false},
		{"the tunnel's port", []networkingv1.NetworkPolicy{ingress(port(&tcp, 15008, 0))}, pod("shop", "web", nil), false},
		{"the tunnel's port in UDP", []networkingv1.NetworkPolicy{ingress(port(&udp, 15008, 0))}, pod("shop", "web", nil), true},
		{"a range", []networkingv1.NetworkPolicy{ingress(port(&tcp, 15000, 16000))}, pod("shop", "web", nil), false},
		{"a range beside it", []networkingv1.NetworkPolicy{ingress(port(&tcp, 14000, 15007))}, pod("shop", "web", nil), true},
		{"deny all", []networkingv1.NetworkPolicy{denyAll}, pod("shop", "web", nil), true},
		{"deny all and one that allows", []networkingv1.NetworkPolicy{denyAll, ingress(port(nil, 15008, 0))}, pod("shop", "web", nil), false},
		{"of other pods", []networkingv1.NetworkPolicy{elsewhere}, pod("shop", "web", nil), false},
		{"of a namespace outside", []networkingv1.NetworkPolicy{denyAll}, pod("other", "web", nil), false},
		{"of a pod outside", []networkingv1.NetworkPolicy{denyAll}, pod("shop", "web", map[string]string{"istio.io/dataplane-mode": "none"}), false},
		{"egress to the program's port", []networkingv1.NetworkPolicy{egress(port(&tcp, 80, 0))}, pod("shop", "web", nil), true},
		{"egress to all", []networkingv1.NetworkPolicy{egress()}, pod("shop", "web", nil), false},
		{"control plane", []networkingv1.NetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Namespace: "istio-system", Name: "d"}}}, pod("istio-system", "ambitd-1", map[string]string{"app": "istiod"}), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := good()
			s.Pods, s.NetworkPolicies = []corev1.Pod{c.pod}, c.policies
			var found []string
			for _, f := range Judge(s, now) {
				if f.Check == "network policies" && f.Level == Error {
					found = append(found, f.Message)
				}
			}
			if (len(found) > 0) != c.blocked {
				t.Errorf("blocked: %v, want %v", found, c.blocked)
			}
		})
	}
}

func TestIstiosProxyServes(t *testing.T) {
	s := good()
	s.DaemonSets[1].Labels = nil
	s.DaemonSets[1].Spec.Template.Labels = map[string]string{"app": "ztunnel"}
	if found := Judge(s, now); Worst(found) != OK {
		t.Errorf("%+v", found)
	}
}

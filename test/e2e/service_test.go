package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// What pods use of a cluster goes on working for those that are enrolled: the
// API server, names, services of every type, on their own and on other nodes.
func TestServicesOfEnrolledPods(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "services", kit.Ambient())
	server := n.Pod("server", kit.OnNode(near))
	n.Service("server")
	n.MustApply(`
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: server}
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec:
  type: ExternalName
  externalName: server.$NS.svc.cluster.local
`)
	n.Pod("near", kit.OnNode(near))
	n.Pod("far", kit.OnNode(far))
	for _, from := range []string{"near", "far"} {
		t.Run("from "+from, func(t *testing.T) {
			n.Tunnelled(from, n.URL("server"), server)
			n.Tunnelled(from, "http://headless."+n.Name+".svc.cluster.local:8080/", server)
			n.Tunnelled(from, "http://elsewhere."+n.Name+".svc.cluster.local/", server)
			n.Tunnelled(from, "http://"+net.JoinHostPort(server.Status.PodIP, "8080")+"/", server)
			out, err := mesh.Exec(t.Context(), n.Name, from, "/echo", "get", "-insecure", "-url", "https://kubernetes.default.svc.cluster.local/version")
			if err != nil || !strings.Contains(out, "gitVersion") {
				t.Errorf("the API server: %q, %v", out, err)
			}
		})
	}
}

// A NodePort leads to enrolled pods from outside the mesh, through any node.
func TestNodePort(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "nodeport", kit.Ambient())
	n.Pod("server", kit.OnNode(near))
	doors := nodePort(t, n, "server")
	outside := mesh.Namespace(t, "outside", nil)
	outside.Pod("client", kit.OnNode(far))
	outside.Pod("host", kit.OnNode(far), kit.HostNetwork, kit.WithCommand("/echo", "server", "-http", ":18080", "-tcp", ":19000", "-first", ":19100"), func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe = nil
	})
	for _, name := range []string{far, near} {
		for _, door := range doors(name) {
			for _, from := range []string{"client", "host"} {
				outside.MustGet(from, "http://"+door.String()+"/")
			}
		}
	}
}

// nodePort makes a Service with a port of every node in front of port 8080 of
// the pods labelled app=name. It returns where that port is on a node, in the
// families that the cluster has.
func nodePort(t *testing.T, n *kit.Namespace, name string) func(node string) []netip.AddrPort {
	t.Helper()
	svc, err := mesh.Kube.CoreV1().Services(n.Name).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": name}, IPFamilyPolicy: ptr.To(corev1.IPFamilyPolicyPreferDualStack),
			Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return func(name string) []netip.AddrPort {
		t.Helper()
		node, err := mesh.Kube.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var doors []netip.AddrPort
		for _, a := range node.Status.Addresses {
			if a.Type != corev1.NodeInternalIP {
				continue
			}
			ip := netip.MustParseAddr(a.Address)
			family := corev1.IPv4Protocol
			if ip.Is6() {
				family = corev1.IPv6Protocol
			}
			if slices.Contains(svc.Spec.IPFamilies, family) {
				doors = append(doors, netip.AddrPortFrom(ip, uint16(svc.Spec.Ports[0].NodePort))) //nolint:gosec // a port
			}
		}
		if len(doors) == 0 {
			t.Fatalf("node %s has no address in %v: %v", name, svc.Spec.IPFamilies, node.Status.Addresses)
		}
		return doors
	}
}

// A pod in its node's network is never captured, and reaches enrolled pods
// as what it is: a client without an identity.
func TestHostNetworkPodStaysOut(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "hostnet", kit.Ambient())
	server := n.Pod("server", kit.OnNode(near))
	n.Service("server")
	n.Redirected("server", true)
	n.Pod("host", kit.OnNode(far), kit.HostNetwork, kit.WithCommand("/echo", "server", "-http", ":18081", "-tcp", ":19001", "-first", ":19101"), func(p *corev1.Pod) {
		p.Spec.Containers[0].ReadinessProbe = nil
	})
	since := time.Now()
	n.MustGet("host", n.URL("server"))
	if line := n.Logged(server, since, `direction="inbound"`); strings.Contains(line, "src.identity") {
		t.Errorf("a pod of the node's network has an identity: %s", line)
	}
	pod, err := mesh.Kube.CoreV1().Pods(n.Name).Get(t.Context(), "host", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := pod.Annotations[wellknown.AnnotationRedirection]; ok {
		t.Errorf("a pod of the node's network is announced as %q", v)
	}
}

// A pod that has ended leaves nothing in the mesh.
func TestJobsLeaveNothing(t *testing.T) {
	n := mesh.Namespace(t, "jobs", kit.Ambient())
	n.Pod("server")
	n.Service("server")
	n.Account("job")
	_, err := mesh.Kube.BatchV1().Jobs(n.Name).Create(t.Context(), &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Name: "job"},
		Spec: batchv1.JobSpec{
			BackoffLimit: ptr.To[int32](0),
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "job"}},
				Spec: corev1.PodSpec{
					ServiceAccountName: "job", RestartPolicy: corev1.RestartPolicyNever,
					Containers: []corev1.Container{{Name: "get", Image: kit.TestImage, Command: []string{"/echo", "get", "-url", n.URL("server")}}},
				},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	kit.Eventually(t, "the job succeeds", func(ctx context.Context) error {
		list, err := mesh.Kube.CoreV1().Pods(n.Name).List(ctx, metav1.ListOptions{LabelSelector: "app=job"})
		if err != nil {
			return err
		}
		if len(list.Items) != 1 || list.Items[0].Status.Phase != corev1.PodSucceeded {
			return fmt.Errorf("%d pods", len(list.Items))
		}
		pod = list.Items[0]
		return nil
	})
	kit.Eventually(t, "the pod of the job is forgotten", func(ctx context.Context) error {
		zt, err := mesh.ZtunnelOn(ctx, pod.Spec.NodeName)
		if err != nil {
			return err
		}
		out, err := mesh.Ambit(ctx, "ztunnel-config", "all", zt+"."+kit.SystemNamespace, "-o", "json")
		if err != nil {
			return err
		}
		if strings.Contains(out, string(pod.UID)) || strings.Contains(out, "/"+n.Name+"/"+pod.Name) {
			return fmt.Errorf("ztunnel of %s still knows %s", pod.Spec.NodeName, pod.Name)
		}
		return nil
	})
}

// Members of a StatefulSet are reached by name, each as itself.
func TestStatefulSet(t *testing.T) {
	n := mesh.Namespace(t, "stateful", kit.Ambient())
	n.Pod("client")
	n.Account("db")
	n.MustApply(`
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: None
  selector: {app: db}
  ports: [{name: http, port: 8080}]
`)
	_, err := mesh.Kube.AppsV1().StatefulSets(n.Name).Create(t.Context(), &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			ServiceName: "db", Replicas: ptr.To[int32](2), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "db"}},
				Spec: corev1.PodSpec{
					ServiceAccountName: "db",
					Containers: []corev1.Container{{
						Name: "echo", Image: kit.TestImage, Command: []string{"/echo", "server"},
						ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}}},
					}},
				},
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, member := range []string{"db-0", "db-1"} {
		pod := n.Ready(member)
		n.Tunnelled("client", "http://"+member+".db."+n.Name+".svc.cluster.local:8080/", pod)
	}
}

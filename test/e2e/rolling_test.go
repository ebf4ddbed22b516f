package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// eachRequest is the load client with a connection for each request.
func eachRequest(p *corev1.Pod) {
	c := &p.Spec.Containers[0]
	c.Command = append(c.Command, "-per-conn", "1", "-workers", "64")
}

// patient has a pod take the time before it ends that Kubernetes advises.
func patient(p *corev1.Pod) {
	p.Spec.TerminationGracePeriodSeconds = ptr.To[int64](10)
	p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 5}}}
}

// An application that is rolled while clients make connections fails none of
// them when its pods take the time that Kubernetes advises before they end.
// Without that time no more fail than outside of the mesh.
func TestApplicationRolled(t *testing.T) {
	in := mesh.Namespace(t, "rolling", kit.Ambient())
	out := mesh.Namespace(t, "rolling-outside", nil)
	const rounds = 3
	for name, opts := range map[string][]kit.Option{"patient": {patient}, "hasty": nil} {
		t.Run(name, func(t *testing.T) {
			var loads []*kit.Load
			for _, n := range []*kit.Namespace{in, out} {
				n.Deployment(name, 4, opts...)
				n.Service(name)
				loads = append(loads, n.StartLoad("client-of-"+name, n.URL(name), 200, eachRequest))
			}
			for range rounds {
				for _, n := range []*kit.Namespace{in, out} {
					roll(t, n, name)
				}
				loads[0].Seconds(2)
			}
			meshed, plain := loads[0].Stop(), loads[1].Stop()
			t.Logf("in the mesh: %+v; outside: %+v", meshed, plain)
			switch {
			case meshed.OK == 0:
				t.Error("nothing was answered")
			case name == "patient" && meshed.Failed > 0:
				t.Errorf("%d of %d connections failed: %v", meshed.Failed, meshed.Sent, meshed.Errors)
			case meshed.Failed > plain.Failed+4*rounds: // a request that was under way is lost with its pod
				t.Errorf("%d of %d connections failed, outside of the mesh %d of %d: %v", meshed.Failed, meshed.Sent, plain.Failed, plain.Sent, meshed.Errors)
			}
		})
	}
}

// TestApplicationBehindAWaypointRolled: no request through a waypoint fails while the pods of
// the application are replaced, also on connections that are kept.
func TestApplicationBehindAWaypointRolled(t *testing.T) {
	n := mesh.Namespace(t, "rolling-waypoint", kit.Ambient())
	from, _ := twoNodes(t)
	n.Deployment("servers", 10, patient, kit.WithLabels(map[string]string{"tier": "server"}), kit.WithCommand("/echo", "server", "-name", "servers", "-grpc", ":9200"))
	n.MustApply(front)
	n.Pod("client", kit.OnNode(from))
	addWaypoint(t, n)
	l := frontLoads(t, n)
	l.goOn(2)
	for range 5 {
		roll(t, n, "servers")
		l.goOn(2)
	}
	if err := through(t.Context(), n); err != nil {
		t.Error(err)
	}
	l.clean(t)
}

// roll replaces the pods of a deployment as kubectl rollout restart does, and
// waits until the new ones are there and the old ones have gone.
func roll(t *testing.T, n *kit.Namespace, name string) {
	t.Helper()
	apps := n.Kube.AppsV1().Deployments(n.Name)
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`, time.Now().Format(time.RFC3339Nano))
	if _, err := apps.Patch(t.Context(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	kit.Eventually(t, "deployment "+n.Name+"/"+name+" is rolled out", func(ctx context.Context) error {
		d, err := apps.Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := d.Status
		if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != *d.Spec.Replicas || s.Replicas != *d.Spec.Replicas || s.AvailableReplicas != *d.Spec.Replicas {
			return fmt.Errorf("%d pods are new, %d of %d available", s.UpdatedReplicas, s.AvailableReplicas, s.Replicas)
		}
		return nil
	})
}

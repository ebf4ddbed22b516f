package kit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/kube/portforward"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/cluster/local"
	"github.com/ambit-mesh/ambit/test/traffic"
)

// rolling is how long the pods of a DaemonSet may take to be replaced, one
// node after the other.
const rolling = 5 * time.Minute

// Machines gives power over machines. Without it, on a cluster that is not the
// project's own, the test fails.
func (c *Cluster) Machines(t testing.TB) *local.Cluster {
	t.Helper()
	if c.Own == nil {
		t.Fatalf("this test takes machines away, and %s is not the project's own cluster: `make cluster` brings that up", c.Kubeconfig)
	}
	return c.Own
}

// Ambitds are the pods of the control plane that are not about to end.
func (c *Cluster) Ambitds(ctx context.Context) ([]corev1.Pod, error) {
	return c.system(ctx, "app=istiod")
}

// AmbitdOf is the one pod of a revision's control plane that is not about to end.
func (c *Cluster) AmbitdOf(ctx context.Context, revision string) (string, error) {
	pods, err := c.system(ctx, "app=istiod,"+wellknown.LabelRevision+"="+revision)
	if err != nil {
		return "", err
	}
	if len(pods) != 1 {
		return "", fmt.Errorf("revision %s has %d pods", revision, len(pods))
	}
	return pods[0].Name, nil
}

// system lists pods of the mesh itself that are not about to end.
func (c *Cluster) system(ctx context.Context, selector string) ([]corev1.Pod, error) {
	list, err := c.Kube.CoreV1().Pods(SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	var pods []corev1.Pod
	for _, p := range list.Items {
		if p.DeletionTimestamp == nil {
			pods = append(pods, p)
		}
	}
	return pods, nil
}

// AgentOn is the node agent of a node.
func (c *Cluster) AgentOn(t testing.TB, node string) string {
	t.Helper()
	pods, err := c.system(t.Context(), "k8s-app=istio-cni-node")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods {
		if p.Spec.NodeName == node {
			return p.Name
		}
	}
	t.Fatalf("no agent runs on %s", node)
	return ""
}

// Kill ends a pod of the mesh as a crash does: it gets no time.
func (c *Cluster) Kill(t testing.TB, pod string) {
	t.Helper()
	if err := c.Kube.CoreV1().Pods(SystemNamespace).Delete(t.Context(), pod, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}); err != nil {
		t.Fatal(err)
	}
}

// ControlPlane waits until as many ambitd as wanted are there, and all ready.
func (c *Cluster) ControlPlane(t testing.TB, replicas int) {
	t.Helper()
	within(t, rolling, fmt.Sprintf("%d ambitd are ready", replicas), func(ctx context.Context) error {
		list, err := c.Kube.CoreV1().Pods(SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: "app=istiod"})
		if err != nil {
			return err
		}
		if len(list.Items) != replicas {
			return fmt.Errorf("there are %d", len(list.Items))
		}
		for i := range list.Items {
			if err := ready(&list.Items[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// PatchDaemonSet changes a DaemonSet of the mesh by a strategic merge patch.
func (c *Cluster) PatchDaemonSet(ctx context.Context, name, patch string) error {
	_, err := c.Kube.AppsV1().DaemonSets(SystemNamespace).Patch(ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// Roll replaces all pods of a DaemonSet of the mesh, as kubectl rollout restart
// does, and waits until the old ones have gone.
func (c *Cluster) Roll(t testing.TB, name string) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":%q}}}}}`, time.Now().Format(time.RFC3339Nano))
	if err := c.PatchDaemonSet(t.Context(), name, patch); err != nil {
		t.Fatal(err)
	}
	c.RolledOut(t, name)
}

// RolledOut waits until each node has one pod of a DaemonSet of the mesh, made
// after its present template, and no other.
func (c *Cluster) RolledOut(t testing.TB, name string) {
	t.Helper()
	within(t, rolling, "DaemonSet "+name+" is rolled out", func(ctx context.Context) error {
		ds, err := c.Kube.AppsV1().DaemonSets(SystemNamespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		s := ds.Status
		if s.ObservedGeneration < ds.Generation || s.UpdatedNumberScheduled != s.DesiredNumberScheduled || s.NumberAvailable != s.DesiredNumberScheduled {
			return fmt.Errorf("of %d pods, %d are new and %d available", s.DesiredNumberScheduled, s.UpdatedNumberScheduled, s.NumberAvailable)
		}
		list, err := c.Kube.CoreV1().Pods(SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(ds.Spec.Selector)})
		if err == nil && len(list.Items) != int(s.DesiredNumberScheduled) {
			err = fmt.Errorf("%d pods on %d nodes", len(list.Items), s.DesiredNumberScheduled)
		}
		return err
	})
}

// addressFiles is where the project's cluster keeps one file for each address in use.
const addressFiles = "/var/lib/cni/networks/ambit-cluster/"

// GiveNext has the next pod of a node of the project's cluster get these addresses, of one
// family each, IPv4 first, once they are free.
func (c *Cluster) GiveNext(t testing.TB, node string, addresses ...string) {
	t.Helper()
	own := c.Machines(t)
	for i, address := range addresses {
		Eventually(t, address+" is free", func(ctx context.Context) error {
			_, err := own.Output(ctx, node, "test", "!", "-e", addressFiles+address)
			return err
		})
		before := netip.MustParseAddr(address).Prev().String()
		if _, err := own.Output(t.Context(), node, "sh", "-c", fmt.Sprintf("printf %s > %slast_reserved_ip.%d", before, addressFiles, i)); err != nil {
			t.Fatal(err)
		}
	}
}

// Followers are the clients of an ambitd.
func (c *Cluster) Followers(ctx context.Context, ambitd string) ([]admin.Follower, error) {
	b, err := c.ask(ctx, SystemNamespace, ambitd, wellknown.PortControlDebug, admin.PathFollowers)
	if err != nil {
		return nil, err
	}
	var all []admin.Follower
	return all, json.Unmarshal(b, &all)
}

// Metric is the sum of a metric of an ambitd over all its labels but one.
func (c *Cluster) Metric(ctx context.Context, ambitd, name, label, value string) (float64, error) {
	b, err := c.ask(ctx, SystemNamespace, ambitd, wellknown.PortControlMonitor, "/metrics")
	if err != nil {
		return 0, err
	}
	all, err := traffic.Samples(string(b), name)
	if err != nil {
		return 0, fmt.Errorf("metrics of %s: %w", ambitd, err)
	}
	var sum float64
	found := false
	for _, s := range all {
		if s.Labels[label] == value {
			sum, found = sum+s.Value, true
		}
	}
	if !found {
		return 0, fmt.Errorf("%s has no metric %s with %s=%q", ambitd, name, label, value)
	}
	return sum, nil
}

// Scrape returns what a proxy serves for Prometheus.
func (c *Cluster) Scrape(ctx context.Context, namespace, pod string) (string, error) {
	b, err := c.ask(ctx, namespace, pod, wellknown.PortMetrics, "/metrics")
	return string(b), err
}

// ask makes a request to a port of a pod.
func (c *Cluster) ask(ctx context.Context, namespace, pod string, port int, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := portforward.HTTPClient(c.Client, namespace, pod, port).Do(req)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s of pod %s: %s: %s", path, pod, resp.Status, b)
	}
	return b, err
}

// Reports are those that the load client in a container has written since a
// moment.
func (c *Cluster) Reports(ctx context.Context, namespace, pod string, since time.Time) ([]traffic.Report, error) {
	log, err := c.Logs(ctx, namespace, pod, "", since)
	if err != nil {
		return nil, err
	}
	return traffic.Reports(strings.NewReader(log)).All()
}

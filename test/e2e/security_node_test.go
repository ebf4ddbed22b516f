package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// TestAgentWritesForItsOwnNodeOnly writes with an agent's token what the agent
// writes, and what only an attacker would.
func TestAgentWritesForItsOwnNodeOnly(t *testing.T) {
	far, near := twoNodes(t)
	n := mesh.Namespace(t, "bound", kit.Ambient())
	own, other := n.Pod("own", kit.OnNode(near)), n.Pod("other", kit.OnNode(far))
	agent, err := mesh.Kube.CoreV1().Pods(kit.SystemNamespace).Get(t.Context(), mesh.AgentOn(t, near), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := rest.AnonymousClientConfig(mesh.Config)
	cfg.BearerToken = mesh.Token(t, kit.SystemNamespace, "ambit-cni", agent)
	as, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		t.Fatal(err)
	}
	pod := func(ctx context.Context, name, patch string) error {
		_, err := as.CoreV1().Pods(n.Name).Patch(ctx, name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
		return err
	}
	// One condition in the place of another, so that their number stays.
	const double = `[{"op":"copy","from":"/status/conditions/0","path":"/status/conditions/1"},{"op":"remove","path":"/status/conditions/2"}]`
	doubled := func(ctx context.Context, name string) error {
		_, err := as.CoreV1().Nodes().Patch(ctx, name, types.JSONPatchType, []byte(double), metav1.PatchOptions{}, "status")
		return err
	}
	node := func(ctx context.Context, name, patch string) error {
		_, err := as.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
		return err
	}
	const annotate = `{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}`
	// Only the time: the agent does not restore what it has written before.
	condition := fmt.Sprintf(`{"status":{"conditions":[{"type":"AmbitRedirectionReady","lastHeartbeatTime":%q}]}}`, time.Now().UTC().Format(time.RFC3339))
	for name, err := range map[string]error{"its pod": pod(t.Context(), own.Name, annotate), "its node": node(t.Context(), near, condition)} {
		if err != nil {
			t.Errorf("the agent cannot write %s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"a pod of another node": pod(t.Context(), other.Name, annotate),
		"another node":          node(t.Context(), far, condition),
		"the address of a pod":  pod(t.Context(), own.Name, `{"status":{"podIP":"192.0.2.1","podIPs":[{"ip":"192.0.2.1"}]}}`),
		"the phase of a pod":    pod(t.Context(), own.Name, `{"status":{"phase":"Failed"}}`),
		"the labels of a pod":   pod(t.Context(), own.Name, `{"metadata":{"labels":{"made":"up"}}}`),
		"a pod's annotation":    pod(t.Context(), own.Name, `{"metadata":{"annotations":{"made":"up"}}}`),
		"a node's readiness":    node(t.Context(), near, `{"status":{"conditions":[{"type":"Ready","message":"made up"}]}}`),
		"a condition twice":     doubled(t.Context(), near),
		"a node's annotation":   node(t.Context(), near, `{"metadata":{"annotations":{"ambient.istio.io/redirection":"enabled"}}}`),
		"a node's labels":       node(t.Context(), near, `{"metadata":{"labels":{"made":"up"}}}`),
		"a node's addresses":    node(t.Context(), near, `{"status":{"addresses":[{"type":"ExternalIP","address":"192.0.2.1"}]}}`),
	} {
		if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
			t.Errorf("the agent writes %s: %v", name, err)
		}
	}
}

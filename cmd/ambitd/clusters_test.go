package main

import (
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/internal/control/access"
	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/kube/client"
	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
	"github.com/ambit-mesh/ambit/internal/kube/tokenreview"
)

// join lets a second cluster's API server vouch for callers, which has a node1
// and a proxy on it as the first has, and the account db on that node.
func (c *onCluster) join(a *app, cluster string, tokens map[string]holder) {
	c.t.Helper()
	api := kubetest.Start(c.t)
	known := map[string]authenticationv1.TokenReviewStatus{}
	for name, h := range tokens {
		c.tokens[name] = "h.e30." + name
		known[c.tokens[name]] = h.status()
	}
	api.OnTokenReview(func(r *authenticationv1.TokenReview) { r.Status = known[r.Spec.Token] })
	kube, err := client.New(client.Options{Kubeconfig: api.Kubeconfig()})
	if err != nil {
		c.t.Fatal(err)
	}
	a.clusters.Set(cluster, auth.KubernetesTokens{Reviewer: tokenreview.New(kube.Kube)})
	a.registry.Nodes.Apply([]access.PodChange{
		{Pod: access.Pod{Cluster: cluster, Namespace: "istio-system", Name: "ztunnel-1"}, New: &access.Placement{Node: "node1", Account: "ztunnel", UID: "z1"}},
		{Pod: access.Pod{Cluster: cluster, Namespace: "shop", Name: "db"}, New: &access.Placement{Node: "node1", Account: "db", UID: "d1"}},
	})
}

// TestTwoClustersWithTheSameNode: with two clusters that both have a node1, its
// proxy on either gets certificates for the pods of its own cluster only, even
// where pod, UID, node and account have the same names, and whatever cluster the
// caller claims.
func TestTwoClustersWithTheSameNode(t *testing.T) {
	c := newCluster(t)
	a := c.replica()
	// The same words in the token: only the API server that accepts it differs.
	c.join(a, "west", map[string]holder{"west-ztunnel": holders["ztunnel-1"]})
	for _, tt := range []struct {
		name, token, claims, account string
		ok                           bool
	}{
		{"a pod of its node", "ztunnel-1", "Kubernetes", "web", true},
		{"a pod of west's node1", "ztunnel-1", "Kubernetes", "db", false},
		{"with the claim to be of west", "ztunnel-1", "west", "db", false},
		{"its own, with that claim", "ztunnel-1", "west", "web", false},
		{"without a claim", "ztunnel-1", "", "web", true},
		{"with another claim", "ztunnel-1", "nowhere", "web", true},
		{"west's proxy, a pod of its node", "west-ztunnel", "west", "db", true},
		{"west's proxy, a pod of our node1", "west-ztunnel", "west", "web", false},
		{"west's proxy, with our claim", "west-ztunnel", "Kubernetes", "web", false},
		{"west's proxy, its own, with our claim", "west-ztunnel", "Kubernetes", "db", false},
		{"west's proxy, without a claim", "west-ztunnel", "", "web", false},
	} {
		if err := c.certificateClaiming(a, tt.token, tt.claims, tt.account); (err == nil) != tt.ok {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// TestWhoIsSentTheDirectory: on Kubernetes, a node proxy is sent all addresses
// when its token is bound to its pod, and no other caller is sent any.
func TestWhoIsSentTheDirectory(t *testing.T) {
	c := newCluster(t)
	log := new(notebook)
	a, _ := c.launch(log)
	c.serves(a)
	for _, tt := range []struct {
		token   string
		sent    bool
		refused string // why, in the log
	}{
		{token: "ztunnel-1", sent: true},
		{token: "web", refused: "shop/web is the account of no node proxy"},
		{token: "waypoint", refused: "shop/waypoint is the account of no node proxy and of no Gateway"},
		{token: "stale", refused: "the credentials are for its predecessor z0"},
		{token: "moved", refused: "the credentials are for node node2"},
		{token: "gone", refused: "there is no running pod istio-system/ztunnel-0"},
		{token: "unbound", refused: "the credentials are not bound to a pod"},
		{token: "borrowed", refused: "pod istio-system/other runs as other"},
	} {
		px := c.followAs(a, tt.token)
		if tt.refused == "" {
			if d := px.next(); (len(d.Updated) > 0) != tt.sent {
				t.Errorf("%s was sent %d resources", tt.token, len(d.Updated))
			}
			continue
		}
		c.eventually(tt.token+" is refused", func() bool {
			return strings.Contains(log.String(), "xds client refused") && strings.Contains(log.String(), tt.refused)
		})
		select {
		case d := <-px.deltas:
			t.Errorf("%s was sent %d resources", tt.token, len(d.Updated))
		default:
		}
	}
}

// TestStreamsFollowTheirCallers: a stream ends with the pod that its token is
// bound to, and with the Gateway that its account is of. A client whose Gateway
// appears is sent what it may have from then on.
func TestStreamsFollowTheirCallers(t *testing.T) {
	c := newCluster(t, pod("shop", "waypoint-1", "p1", "waypoint", "node1", "10.0.1.3"))
	log := new(notebook)
	a, _ := c.launch(log)
	c.serves(a)
	// The waypoint asks for the pod web by name.
	const web = "Kubernetes//Pod/shop/web"
	way := c.followAs(a, "waypoint", web)
	const refusal = "shop/waypoint is the account of no node proxy"
	c.eventually("without a Gateway it is refused", func() bool { return strings.Contains(log.String(), refusal) })
	gateway := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": map[string]any{"namespace": "shop", "name": "waypoint"},
		"spec": map[string]any{"gatewayClassName": "istio-waypoint"},
	}}
	c.api.Define("gateway.networking.k8s.io", "Gateway", "gateways", true, "v1")
	c.api.Add(gateway)
	c.eventually("with a Gateway it is sent the pod", func() bool { // it waits longer after each refusal
		select {
		case d := <-way.deltas:
			if len(d.Updated) != 1 || d.Updated[0].Name != web {
				t.Fatalf("with a Gateway it was sent %+v", d)
			}
			return true
		default:
			return false
		}
	})
	before := strings.Count(log.String(), refusal)
	c.api.Delete(gateway)
	c.eventually("its stream ends with its Gateway", func() bool { return strings.Count(log.String(), refusal) > before })
	select {
	case d := <-way.deltas:
		t.Errorf("after its Gateway is gone it was sent %+v", d)
	default:
	}

	proxy := c.follow(a)
	proxy.next()
	const noPod = "there is no running pod istio-system/ztunnel-1"
	if strings.Contains(log.String(), noPod) {
		t.Fatal("the proxy was refused while it ran")
	}
	c.api.Delete(pod("istio-system", "ztunnel-1", "z1", "ztunnel", "node1", "10.0.1.1"))
	c.eventually("the stream of a proxy whose pod is gone ends, and it gets no other", func() bool {
		return strings.Contains(log.String(), noPod)
	})
}

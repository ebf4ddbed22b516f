package access

import (
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// placedAt is a pod that begins to run.
func placedAt(cluster, namespace, name, node, account string) PodChange {
	return PodChange{Pod: Pod{cluster, namespace, name}, New: &Placement{Node: node, Account: account, UID: cluster + "-" + name}}
}

// twoClusters have nodes, proxies and accounts of the same names, and a shop
// each that differs.
func twoClusters(bound bool) *Nodes {
	n := NewNodes("cluster.local", bound)
	n.Apply([]PodChange{
		placedAt("east", "istio-system", "ztunnel-1", "node1", "ztunnel"), placedAt("west", "istio-system", "ztunnel-1", "node1", "ztunnel"),
		placedAt("east", "shop", "web", "node1", "web"), placedAt("west", "shop", "db", "node1", "db"),
		placedAt("east", "shop", "far", "node2", "far"), placedAt("west", "shop", "both", "node1", "both"), placedAt("east", "shop", "both", "node1", "both"),
	})
	return n
}

func proxyOf(cluster string) auth.Caller {
	return auth.Caller{Cluster: cluster, Namespace: "istio-system", ServiceAccount: "ztunnel", PodName: "ztunnel-1", PodUID: cluster + "-ztunnel-1", Node: "node1"}
}

// TestNodesOfTwoClusters: a node1 of one cluster is not the node1 of another.
func TestNodesOfTwoClusters(t *testing.T) {
	for _, bound := range []bool{false, true} {
		n := twoClusters(bound)
		borrowed := proxyOf("west") // with the name of the other cluster's pod
		borrowed.PodUID = "east-ztunnel-1"
		nowhere := proxyOf("")
		for _, tt := range []struct {
			name    string
			caller  auth.Caller
			account string
			ok      bool
		}{
			{"a pod of its node", proxyOf("east"), "web", true},
			{"a pod of the other cluster's node of that name", proxyOf("east"), "db", false},
			{"the same from there", proxyOf("west"), "web", false},
			{"that cluster's own", proxyOf("west"), "db", true},
			{"an account that runs in both", proxyOf("west"), "both", true},
			{"another node", proxyOf("east"), "far", false},
			{"a pod's UID of the other cluster", borrowed, "db", false},
			{"no cluster", nowhere, "web", false},
		} {
			id := identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: tt.account}
			if err := n.MayImpersonate(tt.caller, id); (err == nil) != tt.ok {
				t.Errorf("bound %v, %s: %v", bound, tt.name, err)
			}
		}
		// What runs in both may end in one.
		n.Apply([]PodChange{{Pod: Pod{"west", "shop", "both"}, Old: &Placement{"node1", "both", "west-both"}}})
		both := identity.Identity{TrustDomain: "cluster.local", Namespace: "shop", ServiceAccount: "both"}
		if east, west := n.MayImpersonate(proxyOf("east"), both), n.MayImpersonate(proxyOf("west"), both); east != nil || west == nil {
			t.Errorf("after the end in west: %v, %v", east, west)
		}
	}
}

// typeLater stands for a type that is for gateways.
const typeLater = "type.googleapis.com/test.Later"

func newCallers(bound bool) *Callers {
	g := NewGateways()
	g.Set(Gateway{"east", "shop", "waypoint"}, "waypoint")
	g.Set(Gateway{"east", "shop", "second"}, "waypoint")
	g.Set(Gateway{"east", "front", "in"}, "in-istio")
	g.Set(Gateway{"east", "shop", "gone"}, "gone")
	g.Set(Gateway{"east", "shop", "gone"}, "")
	g.Set(Gateway{"east", "shop", "moved"}, "before")
	g.Set(Gateway{"east", "shop", "moved"}, "after")
	return &Callers{
		NodeProxies: []string{"istio-system/ztunnel"}, Readers: []string{"shop/hermit"}, Nodes: twoClusters(bound), Gateways: g,
	}
}

// TestKinds: what each caller is, and what of each type it may have.
func TestKinds(t *testing.T) {
	caller := func(cluster, ns, account string) auth.Caller {
		return auth.Caller{Cluster: cluster, Namespace: ns, ServiceAccount: account, PodName: account, PodUID: "u", Node: "node1"}
	}
	byCertificate := func(ns, account string) auth.Caller {
		return auth.Caller{Namespace: ns, ServiceAccount: account, Method: auth.MethodCertificate}
	}
	unbound := auth.Caller{Cluster: "east", Namespace: "istio-system", ServiceAccount: "ztunnel"}
	all := []string{wellknown.TypeAddress, wellknown.TypeAuthorization}
	for _, tt := range []struct {
		name   string
		caller auth.Caller
		kind   Kind
		all    []string // types of which it may have everything
		names  []string // types of which it may ask for anything by name
		groups []xds.Group
	}{
		{name: "a node proxy", caller: proxyOf("east"), kind: NodeProxy, all: all},
		{name: "its certificate", caller: byCertificate("istio-system", "ztunnel")},
		{name: "an account of that name elsewhere", caller: caller("east", "shop", "ztunnel")},
		{name: "a pod", caller: caller("east", "shop", "web")},
		{name: "a reader", caller: caller("east", "shop", "hermit"), kind: Reader, all: all},
		{name: "its certificate", caller: byCertificate("shop", "hermit")},
		{name: "a waypoint", caller: caller("east", "shop", "waypoint"), kind: GatewayProxy, names: all[:1], groups: []xds.Group{"gateway/east/shop/second", "gateway/east/shop/waypoint"}},
		{name: "a gateway", caller: caller("east", "front", "in-istio"), kind: GatewayProxy, names: all[:1], groups: []xds.Group{"gateway/east/front/in"}},
		{name: "the account of that name in another namespace", caller: caller("east", "thieves", "waypoint")},
		{name: "the account of that name in another cluster", caller: caller("west", "shop", "waypoint")},
		{name: "a waypoint's certificate", caller: byCertificate("shop", "waypoint")},
		{name: "a gateway that is gone", caller: caller("east", "shop", "gone")},
		{name: "an account that a gateway had", caller: caller("east", "shop", "before")},
		{name: "an account that it has now", caller: caller("east", "shop", "after"), kind: GatewayProxy, names: all[:1], groups: []xds.Group{"gateway/east/shop/moved"}},
		{name: "no account"},
		{name: "a node proxy's account, where no pod is needed", caller: unbound, kind: NodeProxy, all: all},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newCallers(false)
			if got := d.Kind(tt.caller); got != tt.kind {
				t.Errorf("kind %v, want %v", got, tt.kind)
			}
			for _, typ := range []string{wellknown.TypeAddress, wellknown.TypeAuthorization, typeLater, ""} {
				s, err := d.Scope(tt.caller, "claimed", typ)
				if (err != nil) != (tt.kind == Workload) {
					t.Fatal(err)
				}
				names := s.Within != nil && s.Within("anything")
				if s.All != slices.Contains(tt.all, typ) || names != slices.Contains(tt.names, typ) || !slices.Equal(s.Groups, tt.groups) {
					t.Errorf("%s: all %v, by name %v, groups %v", typ, s.All, names, s.Groups)
				}
			}
		})
	}
}

// TestNodeOfAProxy: what comes unasked is of the node that the credentials
// prove. A claim counts only where they name none, and never for a proxy whose
// credentials contradict what is known.
func TestNodeOfAProxy(t *testing.T) {
	stale, moved, unbound := proxyOf("east"), proxyOf("east"), proxyOf("east")
	stale.PodUID, moved.Node = "before", "node2"
	unbound.PodName, unbound.PodUID, unbound.Node = "", "", ""
	byNode := unbound
	byNode.Node = "node2"
	noNode := proxyOf("east")
	noNode.Node = ""
	for _, tt := range []struct {
		name   string
		caller auth.Caller
		loose  xds.Group // without and with the need of a pod; "" is refused
		bound  xds.Group
	}{
		{"a proxy", proxyOf("east"), "node/east/node1", "node/east/node1"},
		{"of the other cluster", proxyOf("west"), "node/west/node1", "node/west/node1"},
		{"whose token names no node", noNode, "node/east/node1", "node/east/node1"},
		{"with the token of its predecessor", stale, "", ""},
		{"with a token of another node", moved, "", ""},
		{"with a token of a node only", byNode, "node/east/node2", ""},
		{"with a token of nothing", unbound, "node/east/claimed", ""},
	} {
		for _, bound := range []bool{false, true} {
			want := tt.loose
			if bound {
				want = tt.bound
			}
			s, err := newCallers(bound).Scope(tt.caller, "claimed", wellknown.TypeAddress)
			if (err == nil) != (want != "") || err == nil && !slices.Equal(s.Unasked, []xds.Group{want}) || err != nil && s.All {
				t.Errorf("%s, bound %v: %v, %v; want %q", tt.name, bound, s.Unasked, err, want)
			}
			// Of telemetry it has what is for pods of its node, and nothing else.
			s, err = newCallers(bound).Scope(tt.caller, "claimed", wellknown.TypeTelemetry)
			if (err == nil) != (want != "") || s.All || s.Within != nil || len(s.Unasked) > 0 || err == nil && !slices.Equal(s.Groups, []xds.Group{want}) {
				t.Errorf("telemetry of %s, bound %v: %+v, %v; want %q", tt.name, bound, s, err, want)
			}
			// Of rules and routes of connections, what is for all nodes besides.
			for _, typ := range []string{wellknown.TypeTraffic, wellknown.TypeRoute} {
				s, err = newCallers(bound).Scope(tt.caller, "claimed", typ)
				if (err == nil) != (want != "") || s.All || s.Within != nil || len(s.Unasked) > 0 || err == nil && !slices.Equal(s.Groups, []xds.Group{want, AllNodes}) {
					t.Errorf("%s of %s, bound %v: %+v, %v; want %q", typ, tt.name, bound, s, err, want)
				}
			}
		}
	}
}

// TestChangesAreReported: a pod that ended or is not what it was, and accounts that
// gateways gain and lose.
func TestChangesAreReported(t *testing.T) {
	n, g := NewNodes("cluster.local", true), NewGateways()
	var ended []Pod
	var changed []string
	n.Ended = func(p Pod, at Placement) { ended = append(ended, p) }
	g.Changed = func(a Account) { changed = append(changed, a.Name) }
	p := func(name, uid string) *Placement { return &Placement{Node: "node1", Account: name, UID: uid} }
	pod := func(name string) Pod { return Pod{"east", "shop", name} }
	n.Apply([]PodChange{{Pod: pod("a"), New: p("a", "1")}, {Pod: pod("b"), New: p("b", "1")}, {Pod: pod("c"), New: p("c", "1")}})
	if len(ended) > 0 {
		t.Errorf("ended before any did: %v", ended)
	}
	n.Apply([]PodChange{{Pod: pod("a"), Old: p("a", "1")}, {Pod: pod("b"), Old: p("b", "1"), New: p("b", "2")}, {Pod: pod("c"), Old: p("c", "1"), New: p("c", "1")}})
	if want := []Pod{pod("a"), pod("b")}; !slices.Equal(ended, want) {
		t.Errorf("ended %v, want %v", ended, want)
	}
	name := Gateway{"east", "shop", "waypoint"}
	for _, account := range []string{"one", "one", "two", "", ""} {
		g.Set(name, account)
	}
	if want := []string{"one", "one", "two", "two"}; !slices.Equal(changed, want) {
		t.Errorf("changed %v, want %v", changed, want)
	}
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/control/auth"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
	"github.com/ambit-mesh/ambit/internal/xds"
)

const routedShop = `
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop, labels: {istio.io/use-waypoint: wp}}
spec: {clusterIP: 10.96.0.8, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
status: {addresses: [{type: IPAddress, value: 10.0.0.77}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: idle, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
`

func splitYAML(first, second int) string {
	return fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: front}]
  rules:
  - matches: [{path: {type: Exact, value: /fixed}}]
    backendRefs: [{name: front, port: 80}]
  - backendRefs:
    - {name: front, port: 80, weight: %d}
    - {name: web, port: 80, weight: %d}
`, first, second)
}

// gateway is an xDS client as a waypoint has one: a Store that follows the
// rules.
type gateway struct {
	t       *testing.T
	store   *wire.Store
	updates chan []string // names of the resources of each response
	broken  atomic.Bool   // it rejects every resource
}

// gatewayAs connects as a service account.
func (p *plane) gatewayAs(t *testing.T, namespace, account string) *gateway {
	t.Helper()
	issuer, err := auth.OpenIssuer(p.state)
	if err != nil {
		t.Fatal(err)
	}
	token, err := issuer.Issue(auth.Caller{Namespace: namespace, ServiceAccount: account, Node: "node1"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	file := p.state + "/token-of-" + account
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	g := &gateway{t: t, store: wire.NewStore(), updates: make(chan []string, 16)}
	client, err := xds.NewClient(xds.ClientConfig{
		Server: controlplane.Server{Address: "https://" + p.app.addr().String(), RootCAFile: p.state + "/root-cert.pem", TokenFile: file},
		Node:   &core.Node{Id: "waypoint~10.0.0.2~" + account + "." + namespace + "~" + namespace + ".svc.cluster.local"},
		Types:  []xds.TypeConfig{{TypeURL: wellknown.TypeRoute, Apply: g.apply}},
		Logger: logging.Discard(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = client.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return g
}

func (g *gateway) apply(d xds.Delta) (rejected []xds.Rejection) {
	names := []string{}
	for _, r := range d.Updated {
		names = append(names, r.Name)
		err := errors.New("this waypoint executes no route")
		if !g.broken.Load() {
			err = g.store.Set(r.Name, r.Body)
		}
		if err != nil {
			rejected = append(rejected, xds.Rejection{Name: r.Name, Err: err})
		}
	}
	for _, n := range d.Removed {
		names = append(names, "-"+n)
		g.store.Remove(n)
	}
	slices.Sort(names)
	g.updates <- names
	return rejected
}

// next returns the names of the next response.
func (g *gateway) next() string {
	g.t.Helper()
	select {
	case names := <-g.updates:
		return strings.Join(names, " ")
	case <-time.After(30 * time.Second):
		g.t.Fatal("no response came")
		return ""
	}
}

// weights returns the backends of the rule that a request for a path takes.
func (g *gateway) weights(path string) string {
	hit := g.store.Config().Port(route.PortKey{Namespace: "shop", Hostname: "front.shop.svc.cluster.local", Port: 80}).TableFor("").
		Lookup(&message.Head{Method: []byte("GET"), Path: []byte(path)})
	var out []string
	for _, b := range hit.Rule.Backends {
		out = append(out, fmt.Sprintf("%s %d", b.Name, b.Weight))
	}
	return strings.Join(out, ", ")
}

// TestRoutesReachTheirGateway: a route with two weights on a Service that is
// bound to a waypoint is sent to the account of that waypoint, and a change of
// one rule as one resource. A waypoint that no Service is bound to is sent none,
// and neither is a node proxy. What a waypoint has acknowledged, or why it
// rejects it, is in /debug/syncz.
func TestRoutesReachTheirGateway(t *testing.T) {
	p := start(t, map[string]string{"all.yaml": manifests + routedShop, "route.yaml": splitYAML(3, 1)})
	wp, idle, node := p.gatewayAs(t, "shop", "wp"), p.gatewayAs(t, "shop", "idle"), p.gatewayAs(t, "istio-system", "ztunnel")
	const fixed, split = "shop/wp/HTTPRoute/shop/split/0", "shop/wp/HTTPRoute/shop/split/1"
	if got := wp.next(); got != fixed+" "+split {
		t.Fatalf("the waypoint was sent %q", got)
	}
	const front, web = "shop/front.shop.svc.cluster.local:80", "shop/web.shop.svc.cluster.local:80"
	if got := wp.weights("/"); got != front+" 3, "+web+" 1" {
		t.Errorf("/ goes to %s", got)
	}
	if got := wp.weights("/fixed"); got != front+" 1" {
		t.Errorf("/fixed goes to %s", got)
	}
	for name, g := range map[string]*gateway{"a waypoint without services": idle, "a node proxy": node} {
		if got := g.next(); got != "" {
			t.Errorf("%s was sent %q", name, got)
		}
	}
	p.write("route.yaml", splitYAML(1, 1))
	if got := wp.next(); got != split {
		t.Errorf("a change of one rule is %q", got)
	}
	if got := wp.weights("/"); got != front+" 1, "+web+" 1" {
		t.Errorf("/ goes to %s", got)
	}
	p.acknowledged(t, "wp.shop", "")
	wp.broken.Store(true)
	p.write("route.yaml", splitYAML(1, 9))
	wp.next()
	p.acknowledged(t, "wp.shop", "this waypoint executes no route")
	if got := wp.weights("/"); got != front+" 1, "+web+" 1" {
		t.Errorf("after it was rejected, / goes to %s", got)
	}
	wp.broken.Store(false)
	if err := os.Remove(filepath.Join(p.config, "route.yaml")); err != nil {
		t.Fatal(err)
	}
	if got := wp.next(); got != "-"+fixed+" -"+split {
		t.Errorf("without the route: %q", got)
	}
	if len(wp.store.Config().Ports) != 0 || len(idle.updates)+len(node.updates) != 0 {
		t.Errorf("ports that are left: %v; others were sent %d and %d updates", wp.store.Config().Ports, len(idle.updates), len(node.updates))
	}
}

// acknowledged waits until /debug/syncz has the error of a client's last
// response of routes, empty for one that was accepted.
func (p *plane) acknowledged(t *testing.T, name, want string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var list []admin.Follower
		if err := json.Unmarshal([]byte(p.get(p.admin+"/debug/syncz")), &list); err != nil {
			t.Fatal(err)
		}
		for _, f := range list {
			for _, d := range f.Detail {
				if f.Name == name && d.Type == wellknown.TypeRoute && d.Synced && strings.Contains(d.Error, want) && (d.Error == "") == (want == "") {
					return
				}
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not have %q: %+v", name, want, list)
		}
	}
}

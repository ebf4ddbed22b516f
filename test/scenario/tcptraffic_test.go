package scenario

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/test/rig"
)

// entryRule is a DestinationRule of the shop for db.test.
func entryRule(policy string) string {
	return "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: db, namespace: shop}\nspec: {host: db.test, trafficPolicy: " + policy + "}\n"
}

// TestLocalityRule: a client takes the endpoints of its own region, then those of the region
// that the DestinationRule names for it, then all others.
func TestLocalityRule(t *testing.T) {
	t.Parallel()
	endpoint := func(name, node string) string { return rig.ServerObject("shop", name, node, "app: db") }
	y := rig.Shop + endpoint("one", "node1") + endpoint("two", "node2") + endpoint("three", "node3") + rig.ServiceObject("shop", "db", "db", "{name: tcp, port: 8080}")
	for i := range 3 {
		y += fmt.Sprintf("\n---\napiVersion: v1\nkind: Node\nmetadata: {name: node%[1]d, labels: {topology.kubernetes.io/region: r%[1]d}}\n", i+1)
	}
	rule := func(locality string) string {
		return "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: db, namespace: shop}\nspec: {host: db, trafficPolicy: {loadBalancer: {localityLbSetting: " + locality + "}}}\n"
	}
	w := rig.Start(t, lab.Config{YAML: y, Nodes: 3})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		to := netip.AddrPortFrom(w.Service("shop", "db", v6), 8080)
		answersOnly(w, to, "one", "three", "two")
		w.MustApply(rule("{failover: [{from: r2, to: r3}]}"))
		answersOnly(w, to, "two")
		w.MustDelete("Pod", "shop", "two")
		answersOnly(w, to, "three")
		w.MustApply(rule("{failover: [{from: r2, to: r1}]}"))
		answersOnly(w, to, "one")
		w.MustApply(rule("{failover: [{from: r1, to: r3}]}"))
		answersOnly(w, to, "one", "three")
		w.MustApply(endpoint("two", "node2"))
		answersOnly(w, to, "two")
		w.MustApply(rule("{enabled: false}"))
		answersOnly(w, to, "one", "three", "two")
		w.MustDelete("DestinationRule", "shop", "db")
	})
}

// TestConnectTimeout: an endpoint that does not answer costs a connection the time of the
// DestinationRule. It is tried at another endpoint then, and the one that failed is ejected.
func TestConnectTimeout(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{YAML: rig.Shop})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		vip := map[bool]string{false: "240.9.0.3", true: "2001:db8:9::3"}[v6]
		// The network has no such machine: the kernel would report it after 3 seconds.
		absent := map[bool]string{false: "10.88.0.200", true: "fd88::c8"}[v6]
		// The other endpoint has to answer within the time, on a machine under load too.
		w.MustApply(external("db", fmt.Sprintf("hosts: [db.test], addresses: [%q], ports: [{number: 8080, name: tcp}], endpoints: [{address: %q}, {address: %q}]", vip, absent, w.Pod("shop", "web", v6))) +
			entryRule("{connectionPool: {tcp: {connectTimeout: 2s}}, loadBalancer: {simple: ROUND_ROBIN}, outlierDetection: {consecutiveGatewayErrors: 1, baseEjectionTime: 300s, maxEjectionPercent: 50}}"))
		answersOnly(w, at(vip, 8080), "web")
		w.Eventually("the endpoint is ejected", func() error {
			if _, err := w.Get(far, at(vip, 8080)); err != nil {
				return err
			}
			out, err := w.Ambit("why", "far.shop", at(vip, 8080).String())
			return errors.Join(err, contains(out, "DestinationRule shop/db", "connectTimeout 2s", "endpoints ejected now: 1 of 2"))
		})
		timeouts := 0.0
		for _, s := range w.Metrics("node2", "istio_tcp_connections_failed_total") {
			if s.Labels["response_flags"] == reason.ConnectTimeout.Flag() {
				timeouts += s.Value
			}
		}
		if timeouts == 0 {
			t.Error("no attempt has ended by the time-out of the rule")
		}
		w.MustDelete("DestinationRule", "shop", "db")
	})
}

// TestReachOfRules: a rule that is for clients of its own namespace alone is sent to the nodes
// that run some.
func TestReachOfRules(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{YAML: rig.Shop + rig.NamespaceObject("bank", true) + rig.ServerObject("bank", "vault", "node1", "app: vault")})
	rules := func(node string) (out []string) {
		text, err := w.Ambit("ztunnel-config", "traffic", "--node", node)
		if err != nil {
			return []string{err.Error()}
		}
		for _, name := range []string{"DestinationRule bank/own", "DestinationRule shop/all"} {
			if contains(text, name) == nil {
				out = append(out, name)
			}
		}
		return out
	}
	w.MustApply("\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: own, namespace: bank}\nspec: {host: web.shop.svc.cluster.local, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}\n" +
		"\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: all, namespace: shop}\nspec: {host: web, trafficPolicy: {connectionPool: {tcp: {maxConnections: 9}}}}\n")
	for node, want := range map[string]string{"node1": "[DestinationRule bank/own DestinationRule shop/all]", "node2": "[DestinationRule shop/all]"} {
		w.Eventually("the rules of "+node, func() error {
			if got := fmt.Sprint(rules(node)); got != want {
				return fmt.Errorf("%s, want %s", got, want)
			}
			return nil
		})
	}
}

// TestRoutesOnDemand: a proxy that asks for what it meets asks for the backend of a route as
// well, which nothing else has named.
func TestRoutesOnDemand(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{
		YAML: rig.Shop + rig.ServerObject("shop", "other", "node1", "app: other") + rig.ServiceObject("shop", "other", "other", "{name: tcp, port: 90, targetPort: 8080}") +
			rig.ServiceObject("shop", "data", "web", "{name: tcp, port: 9000, targetPort: 8080}") + `
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {name: data, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: data}]
  rules: [{backendRefs: [{name: other, port: 90}]}]
`,
		Env: map[string][]string{"ztunnel": {"XDS_ON_DEMAND=true"}},
	})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := w.For(t)
		answersOnly(w, netip.AddrPortFrom(w.Service("shop", "data", v6), 9000), "other")
	})
}

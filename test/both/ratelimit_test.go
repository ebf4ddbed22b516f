package both

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// rateLimit is a RateLimit of the shop.
func rateLimit(name, spec string) string {
	return `
---
apiVersion: ambit.mesh/v1alpha1
kind: RateLimit
metadata: {name: ` + name + `, namespace: $shop}
spec: {` + spec + `}
`
}

// answered counts the requests of n, each on a connection of its own, that are answered.
func answered(w *world.World, n int, from world.Place, to netip.AddrPort) (in int, err error) {
	all, err := w.Requests(n, from, to, "/")
	for _, r := range all {
		if r.Status == 200 {
			in++
		}
	}
	return in, err
}

// TestRateLimit: the node proxy of a pod lets in as many new connections as its RateLimit
// permits, however the pod is called, and counts each namespace by itself. A connection too
// many is refused, and the reason is in the log.
func TestRateLimit(t *testing.T) {
	w := start(t, world.Options{})
	w.Namespace("market", true)
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + rig.PodObject("$market", "buyer", "node2", "") + server("web", "app: web") +
		rig.ServiceObject("$shop", "web", "web", "{name: tcp, port: 80, targetPort: 8080}, {name: echo, port: 9000}"))
	buyer, web := world.Place{Namespace: "market", Pod: "buyer"}, world.Place{Namespace: "shop", Pod: "web"}
	const refs = `targetRefs: [{kind: Service, name: web}], `
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "web", 80, v6)
		w.Becomes(200, far, to, "/")
		w.Becomes(200, buyer, to, "/")
		// A rate of one per hour gives nothing back during the test.
		each := rateLimit("web", refs+`connections: [{rate: 1, per: 1h, burst: 5, by: SourceNamespace}]`)
		w.Apply(each)
		w.Condition("RateLimit", "shop", "web", "ZtunnelAccepted", "True Accepted", "refuse connections beyond 1 per 1h0m0s, burst 5, by SourceNamespace")
		w.Says([]string{"RateLimit $shop/web", "burst 5"}, "ztunnel-config", "traffic", "--node", w.Node(web))
		w.Says([]string{"RateLimit $shop/web", "room for 5 more new connections now"}, "why", "far.$shop", "web:80", "--tcp")
		if in, err := answered(w, 8, far, to); err != nil || in != 5 {
			w.Errorf("%d of 8 are let in, error %v", in, err)
		}
		// Around the service, at any of its ports, the limit is the same.
		for _, around := range []netip.AddrPort{netip.AddrPortFrom(w.Pod(web, v6), 8080), w.Service("shop", "web", 80, v6)} {
			if in, err := answered(w, 2, far, around); err != nil || in != 0 {
				w.Errorf("%d of 2 to %s are let in, error %v", in, around, err)
			}
		}
		if err := closed(w, far, w.Service("shop", "web", 9000, v6)); err != nil {
			w.Errorf("another port: %v", err)
		}
		if in, err := answered(w, 3, buyer, to); err != nil || in != 3 {
			w.Errorf("%d of 3 of another namespace are let in, error %v", in, err)
		}
		w.ProxyLogs(web, reason.RateLimited.Info().What, "RateLimit $shop/web", "by SourceNamespace")
		w.Says([]string{"RATE_LIMITED", "RateLimit $shop/web", "room for 0 more"}, "why", "far.$shop", "web:80", "--tcp")
		refusedSeries := 0.0
		for _, s := range w.ProxySamples(web, "ambit_rate_limit_connections_total") {
			if s.Labels["name"] == "web" && s.Labels["namespace"] == w.Text("$shop") && s.Labels["decision"] == "refused" {
				refusedSeries = s.Value
			}
		}
		if refusedSeries < 8 {
			w.Errorf("the metric has %v refused connections", refusedSeries)
		}

		// A dry run refuses none, and counts.
		w.Apply(rateLimit("web", refs+`mode: DryRun, connections: [{rate: 1, per: 1h, burst: 5, by: SourceNamespace}]`))
		w.Says([]string{"RateLimit $shop/web", "dry run"}, "ztunnel-config", "traffic", "--node", w.Node(web))
		if in, err := answered(w, 4, far, to); err != nil || in != 4 {
			w.Errorf("%d of 4 are let in by a dry run, error %v", in, err)
		}
		w.Says([]string{"too many: 4"}, "ztunnel-config", "traffic", "--node", w.Node(web))

		// By a selector, and for all clients together.
		w.Delete(each)
		w.Apply(rateLimit("pods", `selector: {matchLabels: {app: web}}, connections: [{rate: 1, per: 1h, burst: 4}]`))
		w.Says([]string{"RateLimit $shop/pods", "1 pods"}, "ztunnel-config", "traffic", "--node", w.Node(web))
		w.Eventually("the limit of before is gone", func() error {
			out, err := w.Ambit("ztunnel-config", "traffic", "--node", w.Node(web))
			if err != nil || len(out) == 0 || strings.Contains(out, w.Text("RateLimit $shop/web")) {
				return fmt.Errorf("%s, error %w", out, err)
			}
			return nil
		})
		a, err := answered(w, 3, buyer, to)
		b, err2 := answered(w, 3, far, to)
		if a != 3 || b != 1 || err != nil || err2 != nil {
			w.Errorf("%d and %d of 3 are let in, errors %v, %v", a, b, err, err2)
		}
		w.Apply(rateLimit("pods", `selector: {matchLabels: {app: none}}, connections: [{rate: 1, per: 1h, burst: 4}]`))
		w.Condition("RateLimit", "shop", "pods", "ZtunnelAccepted", "False TargetNotFound", "the selector matches no pod that runs")
		w.Eventually("a limit for other pods is none", func() error {
			if in, err := answered(w, 6, far, to); err != nil || in != 6 {
				return fmt.Errorf("%d are let in, error %w", in, err)
			}
			return nil
		})
		w.Delete(rateLimit("pods", ""))
	})
}

// TestGlobalRateLimit: a rate limit service decides about each new connection, by what the
// proxy has proven of it. Without an answer, failureMode decides.
func TestGlobalRateLimit(t *testing.T) {
	w := start(t, world.Options{})
	w.Namespace("market", true)
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + rig.PodObject("$market", "buyer", "node2", "") + server("web", "app: web") + server("limiter", "app: limiter", "-limiter", ":8002") +
		rig.ServiceObject("$shop", "web", "web", "{name: tcp, port: 80, targetPort: 8080}") + rig.ServiceObject("$shop", "limiter", "limiter", "{name: grpc, port: 8002}"))
	buyer, web := world.Place{Namespace: "market", Pod: "buyer"}, world.Place{Namespace: "shop", Pod: "web"}
	w.Families(func(w *world.World, v6 bool) {
		to := w.Service("shop", "web", 80, v6)
		limit := func(domain, rest string) string {
			// The service counts for ever: each family has domains of its own.
			domain += map[bool]string{false: "4", true: "6"}[v6]
			return rateLimit("web", "targetRefs: [{kind: Service, name: web}], global: {service: {name: limiter, port: 8002}, domain: "+domain+", descriptors: [{entries: [SourceNamespace, DestinationService]}], "+rest+"}")
		}
		w.Becomes(200, far, to, "/")
		w.Becomes(200, buyer, to, "/")
		w.Apply(limit("some-", "timeout: 5s"))
		w.Condition("RateLimit", "shop", "web", "ZtunnelAccepted", "True Accepted", "is asked about domain some-")
		w.Says([]string{"RateLimit $shop/web", "domain some-"}, "ztunnel-config", "traffic", "--node", w.Node(web))
		n := map[bool]int{false: 4, true: 6}[v6]
		in, err := answered(w, 9, far, to)
		other, err2 := answered(w, 3, buyer, to)
		if in != n || other != 3 || err != nil || err2 != nil {
			w.Errorf("%d of 9 and %d of 3 are let in, want %d and 3, errors %v, %v", in, other, n, err, err2)
		}
		w.ProxyLogs(web, reason.RateLimited.Info().What, "RateLimit $shop/web", "has no room in domain some-")
		w.Says([]string{"RateLimit $shop/web", "is asked about domain some-"}, "why", "far.$shop", "web:80", "--tcp")

		for _, domain := range []string{"broken-", "slow-"} {
			w.Apply(limit(domain, "timeout: 200ms"))
			w.Says([]string{"RateLimit $shop/web", "domain " + domain}, "ztunnel-config", "traffic", "--node", w.Node(web))
			if in, err := answered(w, 2, far, to); err != nil || in != 0 {
				w.Errorf("%s: %d of 2 are let in, error %v", domain, in, err)
			}
			w.ProxyLogs(web, reason.RateLimited.Info().What, "gave no usable answer, and failureMode is Deny")
			w.Apply(limit(domain, "timeout: 200ms, failureMode: Allow"))
			w.Says([]string{"RateLimit $shop/web", "domain " + domain, "failureMode Allow"}, "ztunnel-config", "traffic", "--node", w.Node(web))
			if in, err := answered(w, 2, far, to); err != nil || in != 2 {
				w.Errorf("%s: %d of 2 are let in where failureMode allows, error %v", domain, in, err)
			}
		}
		w.Delete(rateLimit("web", ""))
	})
}

package scenario

import (
	"bufio"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/otlp"
	"github.com/ambit-mesh/ambit/test/rig"
)

// spansYAML is the shop, a service with a waypoint on node1, and a namespace of another
// tenant.
func spansYAML() string {
	return shop + rig.PodObject("shop", "api", "node1", "app: api") + managed + `
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}
spec: {selector: {app: api}, ipFamilyPolicy: PreferDualStack, ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]}
` + rig.NamespaceObject("thieves", true) + rig.PodObject("thieves", "thief", "node2", "")
}

// spansOf returns the spans of connections among those that have come, by what they are.
func spansOf(c *rig.Collector, good func(otlp.Span) bool) (out []otlp.Span) {
	for _, s := range c.Spans() {
		if strings.HasPrefix(s.Name, "tcp ") && good(s) {
			out = append(out, s)
		}
	}
	return out
}

// telemetryIn is a Telemetry of a namespace.
func telemetryIn(namespace, name, spec string) string {
	return strings.Replace(telemetry(name, spec), "namespace: shop", "namespace: "+namespace, 1)
}

// sampled applies settings, and makes connections until one has its spans in both halves.
func sampledPair(w *rig.World, c *rig.Collector, v6 bool) (client, server otlp.Span) {
	w.T().Helper()
	w.Eventually("both spans of a connection", func() error {
		src := exchange(w, far, v6)
		src = netip.AddrPortFrom(w.Pod("shop", "far", v6), src.Port())
		w.Eventually("the line of the client", func() error {
			return w.ExpectLines("node2", "src.addr="+src.String()+" ")
		})
		lines := w.AccessLines("node2", "src.addr="+src.String()+" ")
		_, rest, _ := strings.Cut(lines[0], `trace_id="`)
		trace, _, _ := strings.Cut(rest, `"`)
		if s := c.Of(trace); len(s) == 2 {
			server, client = s[0], s[1]
			return nil
		}
		// What was sampled comes a second later.
		for _, s := range spansOf(c, func(s otlp.Span) bool {
			return s.Kind == 3 && s.Attributes["server.port"] == fmt.Sprint(oddPort) && isV6(s) == v6
		}) {
			if pair := c.Of(s.Trace); len(pair) == 2 {
				server, client = pair[0], pair[1]
				return nil
			}
		}
		return fmt.Errorf("%d spans in all", len(c.Spans()))
	})
	return client, server
}

func isV6(s otlp.Span) bool { return s.Attributes["network.type"] == "ipv6" }

// TestSpans: a connection has a span in each half, in one trace, whose ID is in the logs of
// both node proxies. With a waypoint in the way, its spans are in that trace.
func TestSpans(t *testing.T) {
	world, _ := traced(t, spansYAML(), collectors)
	serveClosing(world)
	c := world.Collector(lab.InPod("shop", "otel"), 4317)
	world.MustApply(telemetry("all", "  tracing: [{randomSamplingPercentage: 100, customTags: {color: {literal: {value: blue}}}}]\n"))
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		client, server := sampledPair(w, c, v6)
		if client.Kind != 3 || server.Kind != 2 || server.Parent != client.ID || client.Parent != "" || client.Name != server.Name || client.Name != fmt.Sprintf("tcp web.shop.svc.cluster.local:%d", oddPort) {
			t.Errorf("%+v\n%+v", client, server)
		}
		w.Logs("node1", `trace_id="`+client.Trace+`"`)
		w.Logs("node2", `trace_id="`+client.Trace+`"`)
		for name, s := range map[string]otlp.Span{"client": client, "server": server} {
			for k, want := range map[string]string{
				"ambit.source_principal": farID, "ambit.destination_principal": webID, "istio.source_workload": "far", "istio.destination_workload": "web",
				"istio.destination_namespace": "shop", "response_flags": "-", "connection_security_policy": "mutual_tls", "color": "blue",
				"server.address": "web.shop.svc.cluster.local", "network.transport": "tcp",
			} {
				if s.Attributes[k] != want {
					t.Errorf("%s: %s is %q, want %q of %v", name, k, s.Attributes[k], want, s.Attributes)
				}
			}
			for _, k := range []string{"ambit.connect.duration_ms", "ambit.tcp.rtt_us", "ambit.tcp.rtt_variation_us", "ambit.tcp.retransmits"} {
				if s.Attributes[k] == "" {
					t.Errorf("%s: no %s in %v", name, k, s.Attributes)
				}
			}
		}
		want(t, "bytes that the client sent", client.Attributes["ambit.bytes_sent"], fmt.Sprint(asked))
		want(t, "bytes that the server sent", server.Attributes["ambit.bytes_sent"], fmt.Sprint(answered))
		t.Run("refused", func(t *testing.T) {
			w := world.For(t)
			w.MustApply(rig.PolicyObject("shop", "never", "DENY", `selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {ports: ["9000"]}}]}]`))
			defer lift(w, "node1", "never")
			to := netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)
			w.BecomesRefused(far, to)
			w.Eventually("spans of a refusal", func() error {
				w.Refused(far, to) // the one before may have been let in, and ended
				for _, s := range spansOf(c, func(s otlp.Span) bool {
					return s.Kind == 2 && s.Attributes["ambit.reason"] == "POLICY_DENIED" && isV6(s) == v6
				}) {
					if s.Error && s.Attributes["response_flags"] == "DENY" && s.Attributes["ambit.policy"] == "shop/never" && len(c.Of(s.Trace)) == 2 {
						return nil
					}
				}
				return fmt.Errorf("none of %d", len(c.Spans()))
			})
		})
		t.Run("waypoint", func(t *testing.T) {
			w := world.For(t)
			path := map[bool]string{false: "/four", true: "/six"}[v6]
			w.Eventually("one trace of all proxies", func() error {
				if err := askOnce(w, netip.AddrPortFrom(w.Service("shop", "api", v6), 80), path); err != nil {
					return err
				}
				for _, s := range c.Spans() {
					if s.Kind != 2 || s.Attributes["url.path"] != path {
						continue
					}
					all := c.Of(s.Trace)
					first := find(all, func(o otlp.Span) bool {
						return o.ID == s.Parent && strings.HasPrefix(o.Name, "tcp ") && o.Kind == 3 && o.Parent == ""
					})
					call := find(all, func(o otlp.Span) bool { return o.Parent == s.ID && o.Kind == 3 })
					if first == nil || call == nil {
						continue
					}
					last := find(all, func(o otlp.Span) bool { return o.Parent == call.ID && o.Kind == 2 && strings.HasPrefix(o.Name, "tcp ") })
					if last != nil && len(all) == 4 && last.Attributes["istio.destination_workload"] == "api" && first.Attributes["istio.source_workload"] == "far" {
						return nil
					}
				}
				return fmt.Errorf("%+v", c.Spans())
			})
		})
	})
}

// TestSpansOnDemand: a node proxy that requests addresses on demand finds the collector. A
// pod's own settings decide before those of its namespace.
func TestSpansOnDemand(t *testing.T) {
	w, _ := traced(t, spansYAML(), collectors, "XDS_ON_DEMAND=true")
	c := w.Collector(lab.InPod("shop", "otel"), 4317)
	w.MustApply(telemetry("all", "  tracing: [{randomSamplingPercentage: 100}]\n"))
	sampledPair(w, c, false)
	w.MustApply(webTelemetry("shop", "quiet", "  tracing: [{match: {mode: SERVER}, disableSpanReporting: true}]\n"))
	w.Eventually("a connection with the span of the client alone", func() error {
		trace, err := lineOf(w, far, "node2", "far", false)
		if err != nil {
			return err
		}
		w.Eventually("the span of the client", func() error {
			if len(c.Of(trace)) == 0 {
				return fmt.Errorf("none of %d", len(c.Spans()))
			}
			return nil
		})
		// The other node sends within the same second, if it does.
		sampledBefore := len(c.Of(trace))
		next, err := lineOf(w, near, "node1", "near", false)
		if err != nil {
			return err
		}
		w.Eventually("a later span of the other node", func() error {
			if len(c.Of(next)) == 0 {
				return fmt.Errorf("none of %d", len(c.Spans()))
			}
			return nil
		})
		if n := max(sampledBefore, len(c.Of(trace))); n != 1 {
			return fmt.Errorf("%d spans", n)
		}
		return nil
	})
}

// TestSpansByTunnel: a collector that admits mutual TLS alone gets the spans of node proxies
// whose pods the control plane knows, with the identity of node proxies.
func TestSpansByTunnel(t *testing.T) {
	yaml := spansYAML() + rig.PolicyObject("shop", "senders", "ALLOW",
		`selector: {matchLabels: {app: otel}}, rules: [{from: [{source: {principals: [cluster.local/ns/istio-system/sa/ztunnel]}}]}]`)
	for _, node := range []string{"node1", "node2"} {
		yaml += strings.Replace(rig.PodObject("istio-system", "ztunnel-"+node+"-ztunnel1", node, ""), "serviceAccountName: ztunnel-"+node+"-ztunnel1", "serviceAccountName: ztunnel", 1)
	}
	w, _ := traced(t, yaml+rig.NamespaceObject("istio-system", false), collectors)
	c := w.Collector(lab.InPod("shop", "otel"), 4317)
	w.MustApply(telemetry("all", "  tracing: [{randomSamplingPercentage: 100}]\n"))
	sampledPair(w, c, false)
	if counted(w, lab.InZtunnel("node1"), "istio_tcp_connections_opened_total", "destination_workload=otel", "source_principal=spiffe://cluster.local/ns/istio-system/sa/ztunnel") == 0 {
		t.Errorf("%v", w.Metrics("node1", "istio_tcp_connections_opened_total"))
	}
}

func find(list []otlp.Span, good func(otlp.Span) bool) *otlp.Span {
	if i := slices.IndexFunc(list, good); i >= 0 {
		return &list[i]
	}
	return nil
}

// serveClosing answers requests in the pod api, one on each connection.
func serveClosing(w *rig.World) {
	l := w.Listen(lab.InPod("shop", "api"), ":8080")
	s := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.Header().Set("Connection", "close") })} //nolint:gosec // of this test alone
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	w.T().Cleanup(func() { _ = s.Close(); <-done })
}

// askOnce makes a request on a connection of its own, without a context of a trace.
func askOnce(w *rig.World, to netip.AddrPort, path string) error {
	c, err := w.Dial(w.T().Context(), far, "tcp", to.String())
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // it was answered
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: api\r\nConnection: close\r\n\r\n", path); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close() //nolint:errcheck // it is empty
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

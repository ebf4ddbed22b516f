package scenario

import (
	"fmt"
	"io"
	"maps"
	"net/netip"
	"regexp"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// Sizes of the one connection of TestTelemetry, in bytes.
const (
	asked    = 3000
	answered = 70
)

// TestTelemetry: one connection is one of each series, with all of Istio's
// labels, and one line in the access log, on either end.
func TestTelemetry(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop})
	rig.Families(t, func(t *testing.T, v6 bool) {
		for _, c := range []struct {
			name, namespace, security string
			from                      lab.Where
			mesh                      bool
		}{
			{"far", "shop", "mutual_tls", far, true},
			{"stranger", "street", "unknown", stranger, false},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := world.For(t)
				labels := tcpLabels(c.name, c.namespace, c.security)
				ends := map[string]string{"destination": "node1"}
				if c.mesh {
					ends["source"] = "node2"
				}
				before := map[string]map[string]float64{}
				for reporter, node := range ends {
					before[reporter] = tcpMetrics(w, node, reporter, labels)
				}
				where := w.Pod("shop", "web", v6)
				src := exchange(w, c.from, v6)
				for reporter, node := range ends {
					w.Eventually("the metrics of the "+reporter, func() error {
						now := tcpMetrics(w, node, reporter, labels)
						for name, n := range map[string]float64{
							"istio_tcp_connections_opened_total": 1, "istio_tcp_connections_closed_total": 1,
							"istio_tcp_received_bytes_total": asked, "istio_tcp_sent_bytes_total": answered,
						} {
							if now[name]-before[reporter][name] != n {
								return fmt.Errorf("%s went from %v to %v, and not by %v\nwanted %v\nseries %v", name, before[reporter][name], now[name], n, labels, w.Metrics(node, name))
							}
						}
						return nil
					})
				}
				src = netip.AddrPortFrom(w.Pod(c.namespace, c.name, v6), src.Port())
				if !c.mesh {
					logsOne(w, "node1", src, fmt.Sprintf(
						`\S+	info	access	connection complete	src.addr=%[1]s src.workload="stranger" src.namespace="street" src.cluster="Kubernetes" `+
							`dst.addr=%[2]s dst.service="web.shop.svc.cluster.local" dst.workload="web" dst.namespace="shop" dst.cluster="Kubernetes" `+
							`direction="inbound" bytes_sent=%[3]d bytes_recv=%[4]d duration="\d+ms"`,
						re(src), re(netip.AddrPortFrom(where, oddPort)), answered, asked))
					return
				}
				const identities = `src.identity="spiffe://cluster.local/ns/shop/sa/far" src.cluster="Kubernetes" `
				const rest = `dst.service="web.shop.svc.cluster.local" dst.workload="web" dst.namespace="shop" ` +
					`dst.identity="spiffe://cluster.local/ns/shop/sa/web" dst.cluster="Kubernetes" trace_id="([0-9a-f]{32})" `
				line := fmt.Sprintf(`\S+	info	access	connection complete	src.addr=%s src.workload="far" src.namespace="shop" `, `%s`) + identities +
					fmt.Sprintf(`dst.addr=%s dst.hbone_addr=%s `, re(netip.AddrPortFrom(where, 15008)), re(netip.AddrPortFrom(where, oddPort))) + rest
				out := logsOne(w, "node2", src, fmt.Sprintf(line, re(src))+fmt.Sprintf(`direction="outbound" bytes_sent=%d bytes_recv=%d duration="\d+ms"`, asked, answered))
				// The inbound end sees the tunnel's own port.
				in := logsOne(w, "node1", netip.AddrPort{}, fmt.Sprintf(line, `\[?`+re(src.Addr())+`\S*`)+fmt.Sprintf(`direction="inbound" bytes_sent=%d bytes_recv=%d duration="\d+ms"`, answered, asked), out)
				want(t, "trace of the inbound end", in, out)
			})
		}
	})
}

func re(v any) string { return regexp.QuoteMeta(fmt.Sprint(v)) }

// logsOne waits for a line like the pattern, and returns its trace. When a
// trace is given, it is that one's line.
func logsOne(w *rig.World, node string, src netip.AddrPort, pattern string, trace ...string) string {
	w.T().Helper()
	p, err := regexp.Compile("^" + pattern + "$")
	if err != nil {
		w.T().Fatal(err)
	}
	var part []string
	if src.IsValid() {
		part = append(part, "src.addr="+src.String()+" ")
	}
	part = append(part, trace...)
	found := ""
	w.Eventually("the access log of "+node, func() error {
		lines := w.AccessLines(node, part...)
		if len(lines) != 1 {
			return fmt.Errorf("%d lines with %q", len(lines), part)
		}
		m := p.FindStringSubmatch(lines[0])
		if m == nil {
			return fmt.Errorf("%s\nis not like\n%s", lines[0], pattern)
		}
		if len(m) > 1 {
			found = m[1]
		}
		return nil
	})
	return found
}

// exchange makes one connection to web on which the client sends asked bytes
// and the server answered, and returns where it came from.
func exchange(w *rig.World, from lab.Where, v6 bool) netip.AddrPort {
	t := w.T()
	c, s := pairTo(w, from, netip.AddrPortFrom(w.Service("shop", "web", v6), oddPort))
	if _, err := c.Write(make([]byte, asked)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(s, make([]byte, asked)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write(make([]byte, answered)); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	if b, err := io.ReadAll(c); err != nil || len(b) != answered {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	at := netip.MustParseAddrPort(c.LocalAddr().String())
	_ = c.Close()
	return at
}

// tcpLabels are the labels of connections to web, but for the reporter.
func tcpLabels(workload, namespace, security string) map[string]string {
	m := map[string]string{
		"source_workload": workload, "source_canonical_service": workload, "source_canonical_revision": "latest", "source_workload_namespace": namespace,
		"source_principal": "unknown", "source_app": workload, "source_version": "latest", "source_cluster": "Kubernetes",
		"destination_service": "web.shop.svc.cluster.local", "destination_service_namespace": "shop", "destination_service_name": "web",
		"destination_workload": "web", "destination_canonical_service": "web", "destination_canonical_revision": "latest", "destination_workload_namespace": "shop",
		"destination_principal": webID, "destination_app": "web", "destination_version": "latest", "destination_cluster": "Kubernetes",
		"request_protocol": "tcp", "response_flags": "-", "connection_security_policy": security,
	}
	if security == "mutual_tls" {
		m["source_principal"] = farID
	}
	return m
}

// tcpMetrics are the values of all metrics with exactly these labels.
func tcpMetrics(w *rig.World, node, reporter string, labels map[string]string) map[string]float64 {
	w.T().Helper()
	exact := maps.Clone(labels)
	exact["reporter"] = reporter
	out := map[string]float64{}
	for _, name := range []string{
		"istio_tcp_connections_opened_total", "istio_tcp_connections_closed_total",
		"istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total",
	} {
		for _, s := range w.Metrics(node, name) {
			// No node here says where it is.
			for _, k := range []string{"source_region", "source_zone", "destination_region", "destination_zone"} {
				if s.Labels[k] == "unknown" {
					delete(s.Labels, k)
				}
			}
			if maps.Equal(s.Labels, exact) {
				out[name] += s.Value
			}
		}
	}
	return out
}

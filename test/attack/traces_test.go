package attack

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestSampledFlood: a tenant whose requests all ask to be sampled, with headers of traces
// that are forged, as long as they may be, and more than a slow collector takes, costs
// neither a request of another tenant nor its spans. The memory of the waypoint is
// bounded, and what was dropped is counted.
func TestSampledFlood(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mesh.yaml")
	if err := os.WriteFile(path, []byte("extensionProviders:\n- {name: otel, opentelemetry: {service: otel.shop.svc.cluster.local, port: 4317}}\ndefaultProviders: {tracing: [otel]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := rig.Start(t, lab.Config{
		YAML: rig.Shop + market() + gatewayObject("waypoint", "service") + front(uses("waypoint", "")) + rig.PodObject("shop", "otel", "node1", "app: otel") +
			rig.ServiceObject("shop", "otel", "otel", "{name: grpc, port: 4317, appProtocol: grpc}"),
		Args: map[string][]string{"ambitd": {"--mesh-config", path}},
	})
	collector := w.Collector(lab.InPod("shop", "otel"), 4317)
	to := netip.AddrPortFrom(w.Service("shop", "front", false), 80)
	throughWaypoint(w, "far", to)
	throughWaypoint(w, "near", to)
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	collector.Answer(func() int { <-hold; return http.StatusOK })

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var floods sync.WaitGroup
	for i := range 4 {
		floods.Go(func() { flood(ctx, w, []lab.Where{thief1, thief2}[i%2], to) })
	}
	at := gatewayAt(w)
	w.Eventually("the flood is more than the waypoint keeps", func() error {
		total := 0.0
		for _, s := range w.MetricsIn(at, "waypoint_spans_dropped_total") {
			if s.Labels["cause"] == "full" {
				total += s.Value
			}
		}
		if total < 1000 {
			return fmt.Errorf("%v spans were dropped", total)
		}
		return nil
	})
	client := w.HTTP(rig.Far)
	const n = 30
	var traces []string
	for i := range n {
		trace := fmt.Sprintf("ffffffffffffffffffffffffffff%04x", i)
		traces = append(traces, trace)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+to.String()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Traceparent", "00-"+trace+"-00f067aa0ba902b7-01")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("request %d during the flood: %v", i, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("request %d during the flood: %s", i, resp.Status)
		}
	}
	release()
	w.Eventually("the spans of the other tenant", func() error {
		missing := slices.DeleteFunc(slices.Clone(traces), func(trace string) bool { return len(collector.Of(trace)) == 2 })
		if len(missing) > 0 {
			return fmt.Errorf("%d of %d are missing", len(missing), n)
		}
		return nil
	})
	stop()
	floods.Wait()
	for _, s := range collector.Spans() {
		if len(s.State) > 512 || len(s.Trace) != 32 || strings.Contains(s.Name, "\n") {
			t.Fatalf("%.300v", s)
		}
	}
}

// gatewayAt is the place of the waypoint's only proxy.
func gatewayAt(w *rig.World) lab.Where {
	w.T().Helper()
	s, err := w.Status(w.T().Context())
	if err != nil {
		w.T().Fatal(err)
	}
	i := slices.IndexFunc(s.Pods, func(p lab.PodStatus) bool { return p.Namespace == "shop" && strings.HasPrefix(p.Name, "waypoint-") })
	if i < 0 {
		w.T().Fatal("there is no waypoint")
	}
	return lab.InPod("shop", s.Pods[i].Name)
}

// flood makes requests on one connection after the other, as fast as they are answered,
// with forged headers of traces.
func flood(ctx context.Context, w *rig.World, from lab.Where, to netip.AddrPort) {
	long := strings.Repeat("x", 6000)
	heads := []string{
		"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: " + long + "=1\r\n",
		"traceparent: ff-" + long + "\r\nb3: 4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-d\r\n",
		"x-b3-traceid: 4bf92f3577b34da6a3ce929d0e0e4736\r\nx-b3-spanid: 00f067aa0ba902b7\r\nx-b3-flags: 1\r\nx-b3-sampled: " + long + "\r\nuser-agent: \"\\\x01" + long + "\r\n",
		"b3: 1\r\nuser-agent: " + long + "\r\n",
	}
	for ctx.Err() == nil {
		c, err := w.Dial(ctx, from, "tcp", to.String())
		if err != nil {
			continue
		}
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		r := bufio.NewReader(c)
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := io.WriteString(c, "GET /"+long[:100]+" HTTP/1.1\r\nHost: front\r\n"+heads[i%len(heads)]+"\r\n"); err != nil {
				break
			}
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				break
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.Close {
				break
			}
		}
		_ = c.Close()
	}
}

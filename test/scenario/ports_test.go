package scenario

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestPortsTaken: a program of the pod that listens on a port of the proxy keeps
// the pod out of the mesh, visibly, until it lets go.
func TestPortsTaken(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + rig.ServerObject("shop", "late", "node1", "istio.io/dataplane-mode: none")})
	late := lab.InPod("shop", "late")
	for _, address := range []string{"0.0.0.0:15008", "[::]:15001", "[::1]:15006"} {
		t.Run(address, func(t *testing.T) {
			w := world.For(t)
			label := func(value *string) {
				t.Helper()
				if err := w.Label(t.Context(), "pod", "shop", "late", map[string]*string{"istio.io/dataplane-mode": value}); err != nil {
					t.Fatal(err)
				}
			}
			state := func(want string) func() error {
				return func() error {
					d, err := w.Dump("node1")
					if err != nil {
						return err
					}
					got := ""
					for _, s := range d.Pods {
						if s.Info.Name == "late" {
							got = s.State
						}
					}
					if !strings.EqualFold(got, want) {
						return fmt.Errorf("the pod is %q", got)
					}
					return nil
				}
			}
			l := w.Listen(late, address)
			before := len(w.Log("ztunnel/node1"))
			label(nil)
			w.Eventually("the pod waits", state("Pending"))
			w.Eventually("the log says why", func() error {
				return contains(w.Log("ztunnel/node1")[before:], "pod cannot be served yet", "shop/late", address[strings.LastIndex(address, ":"):], "address already in use")
			})
			// It is not half in the mesh: who calls it still gets an answer.
			to := func(v6 bool) netip.AddrPort { return netip.AddrPortFrom(w.Pod("shop", "late", v6), 8080) }
			for _, v6 := range []bool{false, true} {
				want(t, "answer", w.MustGet(stranger, to(v6)).Name, "late")
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			w.Eventually("the pod is served", state("Up"))
			w.Settled()
			for _, v6 := range []bool{false, true} {
				want(t, "answer", w.MustGet(far, to(v6)).Name, "late")
				w.Logs("node1", `direction="inbound"`, `src.identity="`+farID, "dst.hbone_addr="+to(v6).String())
			}
			none := "none"
			label(&none)
			w.Settled()
		})
	}
}

// TestMetricsCompressed: who asks for it gets the metrics compressed.
func TestMetricsCompressed(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: shop})
	w.MustGet(far, netip.AddrPortFrom(w.Service("shop", "web", false), 80))
	fetch := func(encoding string) (string, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:15020/stats/prometheus", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept-Encoding", encoding)
		resp, err := w.HTTP(lab.InZtunnel("node2")).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close() //nolint:errcheck // it was read
		var body io.Reader = resp.Body
		if resp.Header.Get("Content-Encoding") == "gzip" {
			if body, err = gzip.NewReader(resp.Body); err != nil {
				t.Fatal(err)
			}
		}
		b, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Get("Content-Encoding"), string(b)
	}
	for encoding, kind := range map[string]string{"gzip": "gzip", "identity": ""} {
		got, text := fetch(encoding)
		want(t, "Content-Encoding for "+encoding, got, kind)
		if err := contains(text, "istio_tcp_connections_opened_total{", `destination_workload="web"`); err != nil {
			t.Errorf("%s: %v", encoding, err)
		}
	}
}

// TestSocketsOpen: what is counted is what was accepted: each connection of a
// program, and each tunnel.
func TestSocketsOpen(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: shop})
	open := func(node, reporter string, n float64) {
		t.Helper()
		w.Eventually(fmt.Sprintf("%s counts %v as the %s", node, n, reporter), func() error {
			for _, s := range w.Metrics(node, "istio_tcp_sockets_open") {
				if s.Labels["reporter"] == reporter {
					if s.Value != n {
						return fmt.Errorf("it counts %v", s.Value)
					}
					return nil
				}
			}
			return errors.New("there is no such metric")
		})
	}
	to := netip.AddrPortFrom(w.Pod("shop", "web", false), 9000)
	var held []*rig.Conn
	for range 3 {
		held = append(held, w.MustHold(far, to))
	}
	open("node2", "source", 3)
	open("node1", "destination", 1)
	held = append(held, w.MustHold(stranger, to))
	open("node1", "destination", 2)
	for _, c := range held {
		_ = c.Close()
	}
	open("node2", "source", 0)
	open("node1", "destination", 1) // the tunnel is kept for the next one
}

package scenario

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/otlp"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestForgedContextsOfConnections: what a program writes into a connection is no context
// for node proxies, and what cannot be read in a tunnel's request is none. A client of the mesh
// that sends the flag of a sampled connection gets the span of that connection alone.
func TestForgedContextsOfConnections(t *testing.T) {
	world, _ := traced(t, spansYAML(), collectors)
	c := world.Collector(lab.InPod("shop", "otel"), 4317)
	// Nothing is sampled here, so that each span that comes was asked for from outside.
	world.MustApply(telemetry("none", "  tracing: [{randomSamplingPercentage: 0}]\n"))
	thief := world.Bundle("spiffe://cluster.local/ns/thieves/sa/thief")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		n := 0
		id := func() string {
			n++
			return fmt.Sprintf("%s4bf92f3577b34da6a3ce929d0e%05x", map[bool]string{false: "4", true: "6"}[v6], n)
		}
		web := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
		forged := map[string]string{}
		for name, from := range map[string]lab.Where{"a program of the mesh": far, "a program outside": stranger} {
			trace := id()
			forged[name] = trace
			conn := w.MustDial(from, web)
			if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: web\r\nTraceparent: 00-%s-00f067aa0ba902b7-01\r\nB3: %s-00f067aa0ba902b7-1\r\nConnection: close\r\n\r\n", trace, trace); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(conn); err != nil {
				t.Fatal(err)
			}
			_ = conn.Close()
		}
		tunnel := w.MustTunnel(stranger, netip.AddrPortFrom(w.Pod("shop", "web", v6), 15008), thief, webID)
		open := func(traceparent string) {
			t.Helper()
			s, status, err := tunnel.Open(http.MethodConnect, netip.AddrPortFrom(web.Addr(), 9000).String(), http.Header{"Traceparent": {traceparent}})
			if err != nil || s == nil {
				t.Fatalf("%q: status %d, error %v", traceparent, status, err)
			}
			if err := s.Exchange("hello"); err != nil {
				t.Error(err)
			}
			_ = s.CloseWrite()
		}
		for name, value := range map[string]string{
			"capital letters": "00-%s-00F067AA0BA902B7-01", "no span": "00-%s-0000000000000000-01", "short": "00-%s-00f0-01", "another version": "cc-%s-00f067aa0ba902b7-01",
			"more": "00-%s-00f067aa0ba902b7-01-x", "not sampled": "00-%s-00f067aa0ba902b7-00",
		} {
			forged[name] = id()
			open(fmt.Sprintf(value, forged[name]))
		}
		said := id()
		w.Eventually("the span that a mesh identity has sampled", func() error {
			open("00-" + said + "-00f067aa0ba902b7-01")
			got := c.Of(said)
			if len(got) == 0 {
				return errors.New("it has not come")
			}
			if s := got[0]; s.Kind != 2 || s.Parent != "00f067aa0ba902b7" || s.Attributes["ambit.source_principal"] != "spiffe://cluster.local/ns/thieves/sa/thief" {
				t.Errorf("%+v", s)
			}
			return nil
		})
		for name, trace := range forged {
			if got := c.Of(trace); len(got) > 0 {
				t.Errorf("%s: %+v", name, got)
			}
		}
	})
}

// TestCollectorOfConnectionsAway: a collector that refuses, answers never, or is not there
// costs no connection. What does not fit is dropped, and counted.
func TestCollectorOfConnectionsAway(t *testing.T) {
	w, _ := traced(t, spansYAML(), collectors)
	var answers, refuses atomic.Bool
	refuses.Store(true)
	hold := make(chan struct{})
	c := w.Collector(lab.InPod("shop", "otel"), 4317)
	c.Answer(func() int {
		switch {
		case answers.Load():
			return http.StatusOK
		case refuses.Load():
			return http.StatusBadRequest
		}
		select {
		case <-hold:
		case <-w.T().Context().Done():
		}
		return http.StatusServiceUnavailable
	})
	w.MustApply(telemetry("all", "  tracing: [{randomSamplingPercentage: 100}]\n"))
	web := netip.AddrPortFrom(w.Pod("shop", "web", false), 8080)
	dropped := func() float64 {
		return counted(w, lab.InZtunnel("node2"), "ztunnel_spans_dropped_total", "cause=failed")
	}
	load := w.StartConnections(far, web, 100)
	w.Eventually("spans that the collector refuses are dropped", func() error {
		if n := dropped(); n == 0 {
			return fmt.Errorf("%v", w.Metrics("node2", "ztunnel_spans_dropped_total"))
		}
		return nil
	})
	refuses.Store(false)
	for range 200 { // meanwhile no answer comes
		w.MustGet(far, web)
	}
	close(hold)
	answers.Store(true)
	w.Eventually("spans come again", func() error {
		if got := spansOf(c, func(s otlp.Span) bool { return s.Kind == 3 }); len(got) == 0 {
			return errors.New("none")
		}
		if n := counted(w, lab.InZtunnel("node2"), "ztunnel_spans_sent_total"); n == 0 {
			return errors.New("none is counted as sent")
		}
		return nil
	})
	load.Clean() // no connection has failed
}

package ztunnel

import (
	"bufio"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
)

// oracle answers demands.
type oracle struct {
	mu     sync.Mutex
	asked  []string
	answer func(ctx context.Context, name string) error
}

func (o *oracle) demand(ctx context.Context, name string) error {
	o.mu.Lock()
	o.asked = append(o.asked, name)
	f := o.answer
	o.mu.Unlock()
	return f(ctx, name)
}

func (o *oracle) set(f func(context.Context, string) error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = f
}

func (o *oracle) names() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := slices.Clone(o.asked)
	slices.Sort(all)
	return strings.Join(slices.Compact(all), " ")
}

// What a service turns out to need is asked for as well, before the first
// byte goes anywhere.
func TestDemandFollowsWaypoints(t *testing.T) {
	w := newWorld(t, false)
	const pods = `
services:
- {name: cart, namespace: shop, hostname: cart.shop.svc.cluster.local, vips: [/10.96.0.1], ports: {80: 8080}, waypoint: {destination: {namespace: shop, hostname: wp.shop.svc}, hboneMtlsPort: 15008}}
`
	const waypoint = `
- {name: wp, namespace: shop, hostname: wp.shop.svc, vips: [/10.96.0.9], ports: {15008: 15008}}
`
	o := &oracle{}
	o.answer = func(_ context.Context, name string) error {
		switch name {
		case "/10.96.0.1":
			w.apply(w.mesh("HBONE", "HBONE", pods))
		case "shop/wp.shop.svc":
			w.apply(strings.Replace(w.mesh("HBONE", "HBONE", pods+waypoint), "shop/cart.shop.svc.cluster.local: {80: 8080}", "shop/wp.shop.svc: {15008: 15008}", 1))
		}
		return nil // or there is no such thing
	}
	w.client.node.Demand = o.demand
	w.apply(w.mesh("HBONE", "HBONE", ""))
	w.enrol(w.client)
	w.serve(8080, echo)
	seen := w.waypoint(w.at(15008), account("cart"))
	c := w.dial(w.vip(80))
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); !strings.HasSuffix(line, " hello\n") {
		t.Fatalf("%q, %v", line, err)
	}
	if got := o.names(); got != "/10.96.0.1 shop/wp.shop.svc" {
		t.Errorf("asked for %q", got)
	}
	if r := seen.seen(t); r.Host != "10.96.0.1:80" {
		t.Errorf("the waypoint was asked for %s", r.Host)
	}
}

// An address about which there is no answer is not spoken to in plaintext.
func TestDemandFailsClosed(t *testing.T) {
	w := newWorld(t, false)
	o := &oracle{answer: func(context.Context, string) error { return context.DeadlineExceeded }}
	w.client.node.Demand = o.demand
	w.apply(strings.ReplaceAll(w.mesh("HBONE", "TCP", ""), w.serverIP().String()+",", "10.9.0.99,"))
	w.enrol(w.client)
	w.serve(8080, echo)
	w.refused(w.at(8080))
	w.client.log.wait(t, "connection failed", "UNKNOWN_DESTINATION")
	o.set(func(context.Context, string) error { return nil })
	w.talk(w.dial(w.at(8080)), "nobody's: passed through")
}

package gateway

import (
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/gateway/place"
	"github.com/ambit-mesh/ambit/internal/l7/upstream"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// TestUnreachableEndpoint: an endpoint that cannot be reached is asked a few times, and
// then left out; requests do not fail meanwhile.
func TestUnreachableEndpoint(t *testing.T) {
	w := newWorld(t, 1)
	w.shop()
	w.endpoint("dead", "10.0.0.66", "shop", "127.0.0.1:1")
	var leftOut atomic.Int32
	w.g.opts.Telemetry.LeftOut = func() { leftOut.Add(1) }
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for i := range 100 {
		if status, body := get(t, c, "/"); status != 200 {
			t.Fatalf("request %d: %d %s", i, status, body)
		}
	}
	dead := 0
	w.mu.Lock()
	for _, d := range w.dialled {
		if d.App.Addr() == netip.MustParseAddr("10.0.0.66") {
			dead++
		}
	}
	w.mu.Unlock()
	if dead != upstream.Unreached.Consecutive {
		t.Errorf("the endpoint was dialled %d times, want %d", dead, upstream.Unreached.Consecutive)
	}
	if n := leftOut.Load(); n != 1 {
		t.Errorf("endpoints were left out %d times", n)
	}
	w.g.RemoveWorkload("c//Pod/ns/dead")
	w.on(w.group.Loop(0), func() {
		if !w.g.shard(w.group.Loop(0)).health.Empty() {
			t.Error("an endpoint is remembered that is gone")
		}
	})
}

// TestOnlyEndpointIsNotLeftOut: the last endpoint of a service is tried however often it
// has failed.
func TestOnlyEndpointIsNotLeftOut(t *testing.T) {
	w := newWorld(t, 1)
	w.service("shop", "10.1.0.1", func(*workloadpb.Service) {})
	w.endpoint("dead", "10.0.0.66", "shop", "127.0.0.1:1")
	c, err := w.connect("10.1.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for range 2 * upstream.Unreached.Consecutive {
		if status, _ := get(t, c, "/"); status != 503 {
			t.Fatal(status)
		}
	}
	for _, r := range w.seen(2*upstream.Unreached.Consecutive, func() []Record { return w.requests }) {
		if r.Reason != reason.ConnectFailure {
			t.Errorf("%s: %v", r.Reason, r.Err)
		}
	}
}

// TestOtherFamily: an endpoint that does not answer at one of its addresses is tried at
// the other one, by requests and by connections.
func TestOtherFamily(t *testing.T) {
	for _, called := range []string{"10.1.0.1", "fd00::1"} {
		for _, app := range []workloadpb.AppProtocol{workloadpb.AppProtocol_HTTP11, workloadpb.AppProtocol_TCP} {
			t.Run(fmt.Sprint(called, app), func(t *testing.T) {
				w := newWorld(t, 1)
				w.service("shop", "10.1.0.1", func(s *workloadpb.Service) {
					s.Ports[0].AppProtocol = app
					s.Addresses = append(s.Addresses, &workloadpb.NetworkAddress{Address: netip.MustParseAddr("fd00::1").AsSlice()})
				})
				v4, v6 := netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("fd00::2")
				w.endpoint("a", v4.String(), "shop", "127.0.0.1:1")
				w.workload("a", v4.String(), func(p *workloadpb.Workload) {
					p.Addresses = append(p.Addresses, v6.AsSlice())
					p.Services = map[string]*workloadpb.PortList{"ns/shop.ns.svc.cluster.local": {Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}}
				})
				good := v6
				if strings.Contains(called, ":") {
					good = v4
				}
				w.mu.Lock()
				w.programs[netip.AddrPortFrom(v4, 8080)], w.programs[netip.AddrPortFrom(v6, 8080)] = "127.0.0.1:1", "127.0.0.1:1"
				w.mu.Unlock()
				p := program(t, "a")
				w.mu.Lock()
				w.programs[netip.AddrPortFrom(good, 8080)] = p
				w.mu.Unlock()
				c, err := w.connect(netip.AddrPortFrom(netip.MustParseAddr(called), 80).String())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = c.Close() }()
				if status, body := get(t, c, "/"); status != 200 {
					t.Errorf("%d %s", status, body)
				}
			})
		}
	}
}

// TestAffinityIsTheClients: where a service keeps clients at their endpoints, it is the
// client that counts, and not this gateway.
func TestAffinityIsTheClients(t *testing.T) {
	w := newWorld(t, 1)
	w.service("shop", "10.1.0.1", func(s *workloadpb.Service) {
		s.Extensions = append(s.Extensions, &workloadpb.Extension{Name: wellknown.ExtensionClientAffinity})
	})
	for i := range 8 {
		w.endpoint(fmt.Sprint("e", i), fmt.Sprintf("10.0.1.%d", i+1), "shop", "")
	}
	svc := w.dir.Snapshot().ServiceByName("ns", "shop.ns.svc.cluster.local")
	l := w.group.Loop(0)
	w.on(l, func() {
		s := w.g.shard(l)
		chosen := map[string]int{}
		for i := range 64 {
			c := &session{shard: s, peer: clientID, remote: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, byte(i)}), 1), dest: place.Destination{Service: svc, Port: 80, Key: key("shop")}}
			first, err := s.pick(c, w.config, nil, "", nil, netip.Addr{})
			again, err2 := s.pick(c, w.config, nil, "", nil, netip.Addr{})
			if err != nil || err2 != nil || first.workload != again.workload {
				t.Fatalf("%v %v, %v %v", first.workload, again.workload, err, err2)
			}
			chosen[first.workload.UID]++
		}
		if len(chosen) < 6 { // one in ten thousand runs of random choices
			t.Errorf("clients share endpoints: %v", chosen)
		}
		c := &session{client: w.dir.Snapshot().WorkloadByUID("c//Pod/ns/client")}
		if c.affine(svc) != "c//Pod/ns/client" {
			t.Error("a client has another name than at its node proxy")
		}
	})
}

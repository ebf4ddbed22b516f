package scenario

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/traffic"
)

const (
	webID      = "spiffe://cluster.local/ns/shop/sa/web"
	farID      = "spiffe://cluster.local/ns/shop/sa/far"
	waypointID = "spiffe://cluster.local/ns/shop/sa/waypoint"
)

var waypoint = lab.InPod("shop", "waypoint")

// gateway is a waypoint of the shop.
func gateway(traffic, annotations, status string) string {
	return fmt.Sprintf(`
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop, labels: {istio.io/waypoint-for: %s}, annotations: {%s}}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
status: {addresses: [%s]}
`, traffic, annotations, status)
}

func ipAddress(a netip.Addr) string { return fmt.Sprintf(`{type: IPAddress, value: "%s"}`, a) }

// ownTunnel is a pod that speaks HBONE itself.
const ownTunnel = "istio.io/dataplane-mode: none, networking.istio.io/tunnel: http, gateway.networking.k8s.io/gateway-name: waypoint, app: waypoint"

// TestWaypoint: connections to a workload or service with a waypoint go there,
// with the authority that the program dialled, and only there.
func TestWaypoint(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + rig.PodObject("shop", "waypoint", "node2", ownTunnel) +
		rig.ServiceObject("shop", "waypoint", "waypoint", "{name: hbone, port: 15008}")})
	for _, c := range []struct {
		name, traffic string
		hostname      bool
	}{
		{"workload", "workload", false},
		{"service", "service", false},
		{"service by hostname", "service", true},
		{"workload by hostname", "workload", true},
	} {
		rig.Families(t, func(t *testing.T, v6 bool) {
			t.Run(c.name, func(t *testing.T) {
				w := world.For(t)
				pod := netip.AddrPortFrom(w.Pod("shop", "web", v6), 8080)
				vip := netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
				to, other, kind := pod, vip, "pod"
				if c.traffic == "service" {
					to, other, kind = vip, pod, "service"
				}
				where := w.Pod("shop", "waypoint", v6)
				address := ipAddress(where)
				if c.hostname {
					address = `{type: Hostname, value: waypoint.shop.svc.cluster.local}`
				}
				wp := w.Waypoint(waypoint, w.Bundle(waypointID), func(string) (netip.AddrPort, string, string) {
					return netip.AddrPortFrom(pod.Addr(), 15008), pod.String(), webID
				})
				w.MustApply(gateway(c.traffic, "", address))
				use := "waypoint"
				if err := w.Label(t.Context(), kind, "shop", "web", map[string]*string{"istio.io/use-waypoint": &use}); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := w.Label(t.Context(), kind, "shop", "web", map[string]*string{"istio.io/use-waypoint": nil}); err != nil {
						t.Error(err)
					}
					// Traffic leaves in stages, and the next case begins without a waypoint.
					w.Eventually("the waypoint is left", func() error {
						for _, at := range []netip.AddrPort{pod, vip} {
							a, err := w.Get(far, at)
							if err != nil || a.Caller != w.Pod("shop", "far", v6) {
								return fmt.Errorf("the server at %s was called by %s, error %w", at, a.Caller, err)
							}
						}
						return nil
					})
				}()
				w.Eventually("a request passes through the waypoint", func() error {
					w.MustGet(far, to)
					s, err := wp.Last()
					if err == nil && s.Remote.Addr().Is6() != v6 {
						err = fmt.Errorf("it came from %s", s.Remote)
					}
					return err
				})
				for _, from := range []string{"far", "near"} {
					before := len(wp.Seen())
					want(t, "answer", w.MustGet(lab.InPod("shop", from), to), traffic.Answer{Name: "web", Caller: where})
					s, err := wp.Last()
					if err != nil || len(wp.Seen()) != before+1 {
						t.Fatalf("%d requests at the waypoint for one of %s: %v", len(wp.Seen())-before, from, err)
					}
					want(t, "authority", s.Authority, to)
					want(t, "peer", s.Peer, "spiffe://cluster.local/ns/shop/sa/"+from)
					want(t, "address", s.Remote.Addr(), w.Pod("shop", from, v6))
					if f := s.Header.Get("forwarded"); !strings.Contains(f, s.Remote.Addr().String()) {
						t.Errorf("forwarded is %q", f)
					}
				}
				w.Logs("node1", `direction="inbound"`, `src.identity="`+waypointID, `dst.hbone_addr=`+pod.String())
				if c.traffic == "service" {
					// The pod itself admits only the waypoint, so that its clients go there.
					want(t, "answer at the pod itself", w.MustGet(far, other), traffic.Answer{Name: "web", Caller: where})
					s, err := wp.Last()
					if err != nil {
						t.Fatal(err)
					}
					want(t, "authority at the pod itself", s.Authority, other)
				} else {
					want(t, "answer by the service", w.MustGet(far, other), traffic.Answer{Name: "web", Caller: where})
				}
				// Strangers are not led there: they are not in the mesh.
				w.BecomesRefused(stranger, to)
			})
		})
	}
}

// TestWaypointImpostor: what listens at the waypoint's address and is not the
// waypoint gets no byte.
func TestWaypointImpostor(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + rig.PodObject("shop", "waypoint", "node2", ownTunnel)})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		vip := netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
		wp := w.Waypoint(waypoint, w.Bundle("spiffe://cluster.local/ns/shop/sa/other"), nil)
		w.MustGet(far, vip)
		w.MustApply(gateway("service", "", ipAddress(w.Pod("shop", "waypoint", v6))))
		use := "waypoint"
		if err := w.Label(t.Context(), "service", "shop", "web", map[string]*string{"istio.io/use-waypoint": &use}); err != nil {
			t.Fatal(err)
		}
		w.BecomesRefused(far, vip)
		if s := wp.Seen(); len(s) > 0 {
			t.Errorf("the impostor got %v", s)
		}
		w.Logs("node2", `dst.hbone_addr=`+vip.String(), `reason="PEER_IDENTITY_MISMATCH"`)
		if err := w.Label(t.Context(), "service", "shop", "web", map[string]*string{"istio.io/use-waypoint": nil}); err != nil {
			t.Fatal(err)
		}
		w.BecomesAnswered(far, vip)
	})
}

// TestSandwich: a waypoint that leaves the tunnels to the mesh gets the
// connections in plaintext: as they are, or with a PROXY header in front.
func TestSandwich(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop + rig.PodObject("shop", "waypoint", "node1", "gateway.networking.k8s.io/gateway-name: waypoint")})
	for _, binding := range []string{"", "PROXY/15088"} {
		rig.Families(t, func(t *testing.T, v6 bool) {
			t.Run("binding "+binding, func(t *testing.T) {
				w := world.For(t)
				to := netip.AddrPortFrom(w.Service("shop", "web", v6), 80)
				got := make(chan any, 16)
				address, annotation := ":80", ""
				if binding != "" {
					annotation = "ambient.istio.io/waypoint-inbound-binding: " + binding
					if address = "127.0.0.1:15088"; v6 {
						address = "[::1]:15088"
					}
				}
				l := w.Listen(waypoint, address)
				go sandwiched(l, binding != "", got)
				w.MustApply(gateway("service", annotation, ipAddress(w.Pod("shop", "waypoint", v6))))
				use := "waypoint"
				if err := w.Label(t.Context(), "service", "shop", "web", map[string]*string{"istio.io/use-waypoint": &use}); err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := w.Label(t.Context(), "service", "shop", "web", map[string]*string{"istio.io/use-waypoint": nil}); err != nil {
						t.Error(err)
					}
				}()
				// What the waypoint of before was asked is not looked at.
				w.Eventually("the waypoint answers at its address", func() error {
					a, err := w.Get(far, to)
					if err != nil {
						return err
					}
					if a.Name != "waypoint" {
						return fmt.Errorf("%s answers", a.Name)
					}
					return sandwichSaw(<-got, w.Pod("shop", "far", v6), to)
				})
				want(t, "answer", w.MustGet(far, to).Name, "waypoint")
				if err := sandwichSaw(<-got, w.Pod("shop", "far", v6), to); err != nil {
					t.Error(err)
				}
				w.Logs("node1", `direction="inbound"`, `dst.workload="waypoint"`, `src.identity="`+farID, `dst.hbone_addr=`+to.String())
			})
		})
	}
}

// sandwichSaw fails unless a waypoint was told who calls, and for what.
func sandwichSaw(seen any, caller netip.Addr, to netip.AddrPort) error {
	switch s := seen.(type) {
	case netip.AddrPort: // plain: the client's own address is kept
		if s.Addr() != caller {
			return fmt.Errorf("the source is %s, and not %s", s, caller)
		}
	case proxyHeader:
		if s.src.Addr() != caller || s.dst != to || s.identity != farID {
			return fmt.Errorf("the header says %+v", s)
		}
	case error:
		return s
	}
	return nil
}

// sandwiched answers requests as test/echo does, and says what it saw.
func sandwiched(l net.Listener, proxied bool, got chan<- any) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close() //nolint:errcheck // answered
			r := bufio.NewReader(c)
			if proxied {
				h, err := readProxy(r)
				if err != nil {
					got <- err
					return
				}
				got <- h
			} else {
				a, _ := netip.ParseAddrPort(c.RemoteAddr().String())
				got <- netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
			}
			for {
				line, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if strings.TrimSpace(line) == "" {
					break
				}
			}
			body := "waypoint answers 0.0.0.0\n"
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
		}()
	}
}

type proxyHeader struct {
	src, dst netip.AddrPort
	identity string
}

// readProxy reads a header of PROXY protocol version 2.
func readProxy(r io.Reader) (proxyHeader, error) {
	var h proxyHeader
	head := make([]byte, 16)
	if _, err := io.ReadFull(r, head); err != nil {
		return h, err
	}
	if string(head[:12]) != "\r\n\r\n\x00\r\nQUIT\n" || head[12] != 0x21 {
		return h, fmt.Errorf("not a PROXY header: %x", head)
	}
	rest := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(r, rest); err != nil {
		return h, err
	}
	n := 4
	if head[13] == 0x21 {
		n = 16
	}
	if len(rest) < 2*n+4 {
		return h, errors.New("a PROXY header that is too short")
	}
	src, _ := netip.AddrFromSlice(rest[:n])
	dst, _ := netip.AddrFromSlice(rest[n : 2*n])
	h.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(rest[2*n:]))
	h.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(rest[2*n+2:]))
	for tlv := rest[2*n+4:]; len(tlv) >= 3; {
		l := int(binary.BigEndian.Uint16(tlv[1:]))
		if 3+l > len(tlv) {
			return h, errors.New("a PROXY field that is too long")
		}
		if tlv[0] == 0xD0 {
			h.identity = string(tlv[3 : 3+l])
		}
		tlv = tlv[3+l:]
	}
	return h, nil
}

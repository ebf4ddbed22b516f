package both

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/traffic"
	"github.com/ambit-mesh/ambit/test/world"
)

// Ports of the host outside of the mesh, and of its entries. Where clients call the second
// port of HTTP, the host has the first.
const (
	hostHTTP, hostMoved, hostTLS, hostFirst = 18086, 18096, 18446, 19106
	hostPorts                               = "ports: [{number: 18086, name: http, protocol: HTTP}, {number: 18096, name: moved, protocol: HTTP, targetPort: 18086}, " +
		"{number: 18446, name: tls, protocol: TLS}, {number: 19106, name: first, protocol: TCP}]"
)

// startOutside makes a world under REGISTRY_ONLY with the client far, whose look-ups are
// captured, a waypoint, and a host outside of the mesh.
func startOutside(t *testing.T) (w *world.World, host map[bool]netip.Addr) {
	t.Helper()
	w = start(t, world.Options{Names: true})
	w.Namespace("street", false)
	host = w.Outside("-http", fmt.Sprint(":", hostHTTP), "-tls", fmt.Sprint(":", hostTLS), "-first", fmt.Sprint(":", hostFirst), "-tcp", ":19006")
	w.Label("shop", `ambit.mesh/outbound-traffic-policy: REGISTRY_ONLY, ambient.istio.io/dns-capture: "true"`)
	w.Apply(rig.PodObject("$shop", "far", "node2", "") + world.Waypoint("shop", 1, "") +
		rig.PodObject("$street", "well", "node1", "app: well", "ECHO", "server", "-name", "well", "-http", fmt.Sprint(":", hostHTTP), "-tcp", "") +
		rig.ServiceObject("$street", "well", "well", fmt.Sprintf("{name: http, port: %d}", hostHTTP)))
	w.ProxiesBecome("shop", 1)
	return w, host
}

// hostEntry is a ServiceEntry of the shop that uses its waypoint, for the host outside.
func hostEntry(rest string) string {
	return `
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: partners, namespace: $shop, labels: {istio.io/use-waypoint: waypoint}}
spec:
  exportTo: ["."]
  location: MESH_EXTERNAL
  ` + hostPorts + `
  ` + rest + "\n"
}

// throughWaypoint returns an error unless the host outside has answered, and was called by the
// waypoint.
func throughWaypoint(w *world.World, r traffic.Response) error {
	a, err := r.Answer()
	if err != nil {
		return err
	}
	if a.Name != "outside" {
		return fmt.Errorf("%s answers", a.Name)
	}
	return w.Through("shop", a.Caller)
}

// byName returns an error unless a host is answered, by its name, through the waypoint.
func byName(w *world.World, url string, v6 bool) error {
	r, err := w.Call(1, far, url, "-ip", map[bool]string{false: "4", true: "6"}[v6])
	if err != nil {
		return err
	}
	return throughWaypoint(w, r[0])
}

// naming returns an error unless a request to an address that names a host is answered by the
// host outside, which was called by the waypoint.
func naming(w *world.World, to netip.AddrPort, host string) error {
	r, err := w.Raw(far, to, "GET / HTTP/1.1\nHost: "+w.Text(host)+"\nConnection: close")
	if err != nil {
		return err
	}
	return throughWaypoint(w, r[0])
}

// denied returns an error unless a request to an address that names a host gets a status.
func denied(w *world.World, status int, to netip.AddrPort, host, path string) error {
	r, err := w.Raw(far, to, "GET "+path+" HTTP/1.1\nHost: "+w.Text(host)+"\nConnection: close")
	if err == nil && r[0].Status != status {
		err = fmt.Errorf("host %.40q: %+v, want status %d", host, r[0], status)
	}
	return err
}

// greets returns an error unless a server that speaks first does.
func greets(w *world.World, to netip.AddrPort) error {
	out, err := w.Exec(far, "ECHO", "greet", "-addr", to.String())
	if err == nil && !strings.Contains(out, "220 welcome") {
		err = fmt.Errorf("%q", out)
	}
	return err
}

// TestHostsOfWaypoint: what a pod calls of a ServiceEntry that is found by look-ups goes through
// its waypoint, with the name: to the address of the name that the waypoint looks up. Policies
// of requests decide there. Names that the entry does not have are refused.
func TestHostsOfWaypoint(t *testing.T) {
	all, host := startOutside(t)
	all.Families(func(w *world.World, v6 bool) {
		name := world.NameOf("street", host[v6])
		wild := "*." + world.Domain("street")
		at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(host[v6], port) }
		for _, c := range []struct{ host, resolution string }{{wild, "DYNAMIC_DNS"}, {wild, "NONE"}, {name, "DYNAMIC_DNS"}} {
			w.Log(c.host, c.resolution)
			policy := `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: door, namespace: $shop}
spec:
  targetRefs: [{group: networking.istio.io, kind: ServiceEntry, name: partners}]
  action: DENY
  rules: [{to: [{operation: {paths: [/closed], ports: ["18086"]}}]}]
`
			entry := hostEntry(fmt.Sprintf("hosts: [%q]\n  resolution: %s", c.host, c.resolution))
			w.Apply(entry + policy)
			w.Eventually("the host answers by its name", func() error { return byName(w, fmt.Sprintf("http://%s:%d/", name, hostHTTP), v6) })
			w.Eventually("the host answers at another port", func() error { return byName(w, fmt.Sprintf("http://%s:%d/", name, hostMoved), v6) })
			w.Eventually("a policy of requests decides", func() error { return denied(w, 403, at(hostHTTP), name, "/closed") })
			others := []string{"evil.example", at(hostHTTP).String(), world.Domain("street"), "x"}
			if c.host == name && host[!v6].IsValid() {
				others = append(others, world.NameOf("street", host[!v6])) // it leads there as well
			}
			for _, other := range others {
				if err := denied(w, 404, at(hostHTTP), other, "/"); err != nil {
					w.Error(err)
				}
			}
			if c.host == wild { // a name that leads to a pod or a Service opens nothing there
				for _, inside := range []netip.Addr{w.Pod(world.Place{Namespace: "street", Pod: "well"}, v6), w.Service("street", "well", hostHTTP, v6).Addr()} {
					if err := denied(w, 503, at(hostHTTP), world.NameOf("street", inside), "/"); err != nil {
						w.Error(err)
					}
				}
			}
			for _, other := range []string{"", world.Domain("street") + ".", strings.Repeat("a.", 200) + name} {
				if r, err := w.Raw(far, at(hostHTTP), "GET / HTTP/1.1\nHost: "+w.Text(other)+"\nConnection: close"); err != nil || r[0].Status != 0 && r[0].Status < 400 {
					w.Errorf("host %.40q: %+v, error %v", other, r, err)
				}
			}
			if err := reaches(w, 2, far, at(hostTLS), w.Text(name), "", "outside"); err != nil {
				w.Errorf("TLS: %v", err)
			}
			if err := reaches(w, 2, far, at(hostTLS), "evil.example", "", ""); err != nil {
				w.Errorf("another name in TLS: %v", err)
			}
			if err := greets(w, at(hostFirst)); err != nil {
				w.Errorf("TCP: %v", err)
			}
			w.ProxyLogs(far, `src.workload="far"`, fmt.Sprintf("dst.service=%q", c.host), fmt.Sprintf("dst.hbone_addr=%s:%d", name, hostFirst))
			w.Says([]string{"Gateway $shop/waypoint", fmt.Sprintf("for %s:%d", name, hostFirst), host[v6].String()}, "why", "far.$shop", at(hostFirst).String())
			w.Delete(entry + policy)
			w.Eventually("the host is in no registry", func() error { return refused(w, 1, far, at(hostHTTP)) })
		}
	})
}

// TestAddressesOfWaypoint: a ServiceEntry whose endpoints are names leads through its waypoint to
// an address that the waypoint looks up; one of DYNAMIC_DNS with an address leads to the name of
// the request; and one of NONE with ranges leads to the address that was called.
func TestAddressesOfWaypoint(t *testing.T) {
	all, host := startOutside(t)
	all.Families(func(w *world.World, v6 bool) {
		name := world.NameOf("street", host[v6])
		vip := netip.MustParseAddr(map[bool]string{false: "240.240.9.9", true: "2001:2::909"}[v6])
		for _, c := range []struct{ host, rest string }{
			{name, "resolution: DNS"},
			{name, "resolution: DNS_ROUND_ROBIN"},
			{"vault.$street.example", "resolution: DNS\n  endpoints: [{address: " + name + "}]"},
		} {
			w.Log(c.host, c.rest)
			entry := hostEntry(fmt.Sprintf("hosts: [%q]\n  %s", c.host, c.rest))
			w.Apply(entry)
			at := virtual(w, far, w.Text(c.host), v6)
			w.Eventually("it is answered", func() error { return naming(w, netip.AddrPortFrom(at, hostHTTP), c.host) })
			w.Eventually("it is answered by its name", func() error { return byName(w, fmt.Sprintf("http://%s:%d/", c.host, hostMoved), v6) })
			if err := reaches(w, 2, far, netip.AddrPortFrom(at, hostTLS), w.Text(c.host), "", "outside"); err != nil {
				w.Errorf("TLS: %v", err)
			}
			if err := greets(w, netip.AddrPortFrom(at, hostFirst)); err != nil {
				w.Errorf("TCP: %v", err)
			}
			w.Delete(entry)
		}

		entry := hostEntry(fmt.Sprintf("hosts: [%q]\n  resolution: DYNAMIC_DNS\n  addresses: [%q]", "*."+world.Domain("street"), vip))
		w.Apply(entry)
		w.Eventually("the name of the request decides", func() error { return naming(w, netip.AddrPortFrom(vip, hostHTTP), name) })
		w.Eventually("the name of the request decides at another port", func() error { return naming(w, netip.AddrPortFrom(vip, hostMoved), name) })
		if err := denied(w, 404, netip.AddrPortFrom(vip, hostHTTP), "evil.example", "/"); err != nil {
			w.Error(err)
		}
		if err := greets(w, netip.AddrPortFrom(vip, hostFirst)); err == nil {
			w.Error("without a name a connection is made")
		}
		w.Delete(entry)

		bits := map[bool]int{false: 28, true: 124}[v6]
		entry = hostEntry(fmt.Sprintf("hosts: [block.example]\n  resolution: NONE\n  addresses: [\"%s/%d\"]", host[v6], bits))
		w.Apply(entry)
		at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(host[v6], port) }
		w.Eventually("the address that was called answers", func() error { return naming(w, at(hostHTTP), "block.example") })
		w.Eventually("the address that was called answers at another port", func() error { return naming(w, at(hostMoved), "block.example") })
		if err := reaches(w, 2, far, at(hostTLS), "anything.example", "", "outside"); err != nil {
			w.Errorf("TLS: %v", err)
		}
		if err := greets(w, at(hostFirst)); err != nil {
			w.Errorf("TCP: %v", err)
		}
		w.Says([]string{"Gateway $shop/waypoint", host[v6].String()}, "why", "far.$shop", at(hostFirst).String())
		w.Delete(entry)
		w.Eventually("the address is in no registry", func() error { return refused(w, 1, far, at(hostHTTP)) })
	})
}

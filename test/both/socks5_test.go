package both

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/ztunnel/socks5"
	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// socksAt is where the proxy listens in a pod.
func socksAt(v6 bool) netip.AddrPort {
	return netip.MustParseAddrPort(map[bool]string{false: "127.0.0.1:15080", true: "[::1]:15080"}[v6])
}

// Messages of SOCKS5: the offer of the only method that is accepted, and the answer to it.
var offer, accepted = []byte{5, 1, 0}, []byte{5, 0}

// socksFor returns the message that asks for a command with a destination.
func socksFor(command byte, to string) []byte {
	host, port, err := net.SplitHostPort(to)
	n, perr := strconv.ParseUint(port, 10, 16)
	if err != nil || perr != nil {
		panic(to)
	}
	b := []byte{5, command, 0}
	if a, err := netip.ParseAddr(host); err != nil {
		b = append(append(b, 3, byte(len(host))), host...)
	} else if a.Is4() {
		b = append(append(b, 1), a.AsSlice()...)
	} else {
		b = append(append(b, 4), a.AsSlice()...)
	}
	return binary.BigEndian.AppendUint16(b, uint16(n))
}

// socksReply returns the answer with a code.
func socksReply(code socks5.Code) []byte {
	return append(append([]byte{}, accepted...), 5, byte(code), 0, 1, 0, 0, 0, 0, 0, 0)
}

// replies returns an error unless a client that asks for a destination gets a code.
func replies(w *world.World, from world.Place, v6 bool, to string, want socks5.Code) error {
	reply := socksReply(want)
	got, err := w.Bytes(len(reply), from, socksAt(v6), append(append([]byte{}, offer...), socksFor(1, w.Text(to))...))
	if err == nil && got[0].Got != hex.EncodeToString(reply) {
		err = fmt.Errorf("%.40s: %+v, want the code %d", to, got[0], want)
	}
	return err
}

// anyPort returns how lines of an address begin, whatever the port is.
func anyPort(a netip.Addr) string { return strings.TrimSuffix(netip.AddrPortFrom(a, 0).String(), "0") }

// TestSOCKS5: programs that ask their proxy for connections get them by name and by address,
// to the mesh and outside of it, and the mesh has the identity of their pod. A reply has the
// cause of a failure. Policies hold.
func TestSOCKS5(t *testing.T) {
	all := startShopWith(t, world.Options{Names: true, SOCKS5: true})
	host := all.Outside("-http", ":18087", "-tcp", ":19007")
	all.Families(func(w *world.World, v6 bool) {
		get := func(to string) (string, netip.Addr, error) {
			r, err := w.Call(1, far, "http://"+to+"/", "-proxy", "socks5h://"+socksAt(v6).String())
			if err != nil {
				return "", netip.Addr{}, err
			}
			a, err := r[0].Answer()
			return a.Name, a.Caller, err
		}
		vip, pod := w.Service("shop", "web", 80, v6), netip.AddrPortFrom(w.Pod(web, v6), 8080)
		w.Eventually("SOCKS5 is served", func() error { return replies(w, far, v6, vip.String(), socks5.Succeeded) })
		for _, to := range []string{"web", "web.$shop", "web.$shop.svc.cluster.local", "WEB.$shop.svc.cluster.local."} {
			if name, _, err := get(to); err != nil || name != "web" {
				w.Errorf("%s: %s answers, error %v", to, name, err)
			}
		}
		for _, to := range []netip.AddrPort{vip, pod} {
			if name, caller, err := get(to.String()); err != nil || name != "web" || caller != w.Pod(far, v6) {
				w.Errorf("%s: %s answers %s, error %v", to, name, caller, err)
			}
		}
		w.ProxyLogs(far, `direction="outbound"`, "src.addr="+anyPort(w.Pod(far, v6)), `src.workload="far"`, `dst.workload="web"`)
		w.ProxyLogs(web, `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/$shop/sa/far"`, "dst.hbone_addr="+pod.String())
		for _, to := range []string{netip.AddrPortFrom(host[v6], 18087).String(), world.NameOf("street", host[v6]) + ":18087"} {
			if name, _, err := get(to); err != nil || name != "outside" {
				w.Errorf("%s: %s answers, error %v", to, name, err)
			}
		}

		loopback := map[bool]netip.Addr{false: netip.MustParseAddr("127.0.0.1"), true: netip.IPv6Loopback()}[v6]
		for to, code := range map[string]socks5.Code{
			vip.String(): socks5.Succeeded,
			"web:9000":   socks5.Succeeded,
			netip.AddrPortFrom(vip.Addr(), 81).String():  socks5.HostUnreachable,   // no such port
			netip.AddrPortFrom(pod.Addr(), 1).String():   socks5.ConnectionRefused, // nothing listens
			netip.AddrPortFrom(host[v6], 1).String():     socks5.ConnectionRefused, // nor outside of the mesh
			world.NameOf("street", loopback) + ":15000":  socks5.NotAllowed,
			netip.AddrPortFrom(loopback, 15000).String(): socks5.NotAllowed,
			"nothing.example:80":                         socks5.HostUnreachable,
			"[::1]:15001":                                socks5.NotAllowed,
			"[::ffff:127.0.0.1]:80":                      socks5.NotAllowed,
			"0.0.0.0:15053":                              socks5.NotAllowed,
			"[::]:15053":                                 socks5.NotAllowed,
			"224.0.0.1:80":                               socks5.NotAllowed,
			"[ff02::1]:80":                               socks5.NotAllowed,
			"127.1:80":                                   socks5.HostUnreachable, // a name, that no server has
			"bad name:80":                                socks5.GeneralFailure,
			netip.AddrPortFrom(vip.Addr(), 0).String():   socks5.GeneralFailure,
			strings.Repeat("a.", 124) + "example:80":     socks5.GeneralFailure,
			strings.Repeat("a", 64) + ".example:80":      socks5.GeneralFailure,
		} {
			if err := replies(w, far, v6, to, code); err != nil {
				w.Error(err)
			}
		}

		deny := rig.PolicyObject("$shop", "not-far", "DENY", `selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: ["cluster.local/ns/$shop/sa/far"]}}]}]`)
		w.Apply(deny)
		w.Eventually("a policy denies", func() error { return replies(w, far, v6, vip.String(), socks5.NotAllowed) })
		w.Delete(deny)
		w.Eventually("no policy denies", func() error { return replies(w, far, v6, vip.String(), socks5.Succeeded) })
		w.Label("shop", "ambit.mesh/outbound-traffic-policy: REGISTRY_ONLY")
		at := netip.AddrPortFrom(host[v6], 18087)
		w.Eventually("it is in no registry", func() error { return replies(w, far, v6, at.String(), socks5.NotAllowed) })
		if err := replies(w, far, v6, world.NameOf("street", host[v6])+":18087", socks5.NotAllowed); err != nil {
			w.Errorf("a name of what is in no registry: %v", err)
		}
		w.ProxyLogs(far, `reason="NOT_IN_REGISTRY"`, `src.workload="far"`, at.String())
		if name, _, err := get("web"); err != nil || name != "web" {
			w.Errorf("%s answers, error %v", name, err)
		}
		w.Label("shop", "")
		w.Eventually("nothing is refused", func() error { return replies(w, far, v6, at.String(), socks5.Succeeded) })
	})
}

// TestSOCKS5Hostile: what is not SOCKS5 gets no connection; commands that would open
// something else are refused; clients that do not ask are bounded, and end. Other pods do not
// reach the port.
func TestSOCKS5Hostile(t *testing.T) {
	all := startShopWith(t, world.Options{SOCKS5: true})
	all.Families(func(w *world.World, v6 bool) {
		echo := w.Service("shop", "web", 9000, v6).String()
		w.Eventually("SOCKS5 is served", func() error { return replies(w, far, v6, echo, socks5.Succeeded) })
		for name, tt := range map[string]struct{ send, want []byte }{
			"version 4":           {[]byte{4, 1, 0, 80, 1, 2, 3, 4, 0}, nil},
			"HTTP":                {[]byte("GET / HTTP/1.1\r\n\r\n"), nil},
			"no method":           {[]byte{5, 0}, []byte{5, 0xff}},
			"password alone":      {[]byte{5, 2, 1, 2}, []byte{5, 0xff}},
			"BIND":                {append(offer[:3:3], socksFor(2, echo)...), socksReply(socks5.CommandUnsupported)},
			"UDP ASSOCIATE":       {append(offer[:3:3], socksFor(3, echo)...), socksReply(socks5.CommandUnsupported)},
			"another address":     {append(offer[:3:3], 5, 1, 0, 9, 1, 2, 3), socksReply(socks5.AddressUnsupported)},
			"empty name":          {append(offer[:3:3], 5, 1, 0, 3, 0, 0, 80), socksReply(socks5.GeneralFailure)},
			"another version":     {append(offer[:3:3], append([]byte{4}, socksFor(1, echo)[1:]...)...), socksReply(socks5.GeneralFailure)},
			"several, one usable": {append(append([]byte{5, 3, 2, 1, 0}, socksFor(1, echo)...), "ping\n"...), append(socksReply(socks5.Succeeded), "ping\n"...)}, // and bytes that did not wait
		} {
			served := bytes.HasSuffix(tt.want, []byte("ping\n"))
			n := len(tt.want)
			if !served {
				n++ // there is no more
			}
			got, err := w.Bytes(n, far, socksAt(v6), tt.send)
			if err != nil || got[0].Got != hex.EncodeToString(tt.want) || got[0].Ended == served {
				w.Errorf("%s: %+v, error %v, want %x", name, got, err, tt.want)
			}
		}

		silent := make(chan error, 1)
		go func() {
			out, err := w.Exec(far, "ECHO", "slow", "-addr", socksAt(v6).String(), "-n", "300", "-duration", "50s", "-send", "0501")
			if err == nil && strings.TrimSpace(out) != "0" {
				err = fmt.Errorf("%s silent clients stay", strings.TrimSpace(out))
			}
			silent <- err
		}()
		w.ProxyLogs(far, `reason="RESOURCE_EXHAUSTED"`, "have not asked", "src.addr="+anyPort(socksAt(v6).Addr()))
		w.Becomes(200, far, w.Service("shop", "web", 80, v6), "/") // others go on
		if err := <-silent; err != nil {
			w.Error(err)
		}
		if err := replies(w, far, v6, echo, socks5.Succeeded); err != nil {
			w.Errorf("afterwards: %v", err)
		}

		for _, from := range []world.Place{near, gnome, stranger} {
			got, err := w.Bytes(2, from, netip.AddrPortFrom(w.Pod(far, v6), 15080), offer)
			if err != nil || got[0].Got != "" {
				w.Errorf("from %s: %+v, error %v", from, got, err)
			}
		}
	})
}

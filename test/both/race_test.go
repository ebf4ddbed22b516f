package both

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
	"github.com/ambit-mesh/ambit/test/world"
)

// raceEntry is a ServiceEntry of the shop for a name.
func raceEntry(name, annotations string) string {
	entry := entryOf("raced", "", "resolution: DNS\n  ports: [{number: 80, targetPort: 8080, name: http, protocol: HTTP}]\n  endpoints: [{address: "+name+"}]")
	return strings.Replace(entry, "labels: {}", "annotations: {"+annotations+"}", 1)
}

// connections returns how many connections the servers of some pods have got.
func connections(w *world.World, pods ...world.Place) (sum int) {
	w.Helper()
	for _, p := range pods {
		out, err := w.Exec(p, "ECHO", "get", "-url", "http://127.0.0.1:8080/connections")
		n, nerr := strconv.Atoi(strings.TrimSpace(out))
		if err != nil || nerr != nil {
			w.Fatalf("connections of %s: %q, error %v", p, out, err)
		}
		sum += n
	}
	return sum
}

// TestAddressesAreRaced: an endpoint's name leads to the first of its addresses that
// answers, whatever its family. Addresses that refuse, or that do not answer, do not keep
// connections from it. With the annotation all addresses are called at once.
func TestAddressesAreRaced(t *testing.T) {
	all := start(t, world.Options{Names: true})
	all.Namespace("street", false)
	pods := rig.PodObject("$shop", "far", "node2", "") + rig.PodObject("$street", "empty", "node1", "") +
		rig.ServerObject("$street", "deaf", "node1", "", "-name", "deaf", "-http", "", "-deaf", ":8080")
	for _, name := range []string{"one", "two"} {
		pods += rig.ServerObject("$street", name, "node1", "", "-name", name)
	}
	all.Apply(pods)
	one, two := world.Place{Namespace: "street", Pod: "one"}, world.Place{Namespace: "street", Pod: "two"}
	deaf, empty := world.Place{Namespace: "street", Pod: "deaf"}, world.Place{Namespace: "street", Pod: "empty"}
	const race = "istio.io/connect-strategy: RACE_FIRST_TCP_CONNECT"
	all.Families(func(w *world.World, v6 bool) {
		suffix := map[bool]string{false: "-v4", true: "-v6"}[v6]
		type raced struct {
			name        string
			to          []netip.Addr
			annotations string
			want        netip.Addr // of the only address that can answer
		}
		of := func(pods ...world.Place) (addresses []netip.Addr) {
			for _, p := range pods {
				addresses = append(addresses, w.Addresses(p)...)
			}
			return addresses
		}
		cases := []raced{{"deaf", of(deaf, one), "", netip.Addr{}}, {"refusing", of(empty, one), "", netip.Addr{}}, {"deaf-race", of(deaf, one), race, netip.Addr{}}}
		if len(w.Addresses(one)) > 1 {
			other := w.Pod(one, !v6)
			mixed := []netip.Addr{w.Pod(deaf, v6), w.Pod(empty, v6), other}
			cases = append(cases, raced{"other", mixed, "", other}, raced{"other-race", mixed, race, other})
		}
		for _, c := range cases {
			entry := raceEntry(w.Name("street", c.name+suffix, c.to...), c.annotations)
			w.Apply(entry)
			to := netip.AddrPortFrom(virtual(w, far, "raced.example", v6), 80)
			w.Eventually(c.name+" answers", func() error { return w.AnsweredBy("one", 1, far, to, "/") })
			if err := w.AnsweredBy("one", 10, far, to, "/"); err != nil {
				w.Errorf("%s: %v", c.name, err)
			}
			if c.want.IsValid() {
				w.ProxyLogs(far, `dst.service="raced.example"`, "dst.addr="+netip.AddrPortFrom(c.want, 8080).String(), "connection complete")
			}
			w.Delete(entry)
		}

		name := w.Name("street", "servers"+suffix, of(one, two)...)
		w.Apply(raceEntry(name, race))
		to := netip.AddrPortFrom(virtual(w, far, "raced.example", v6), 80)
		w.Eventually("all are called at once", func() error {
			const n = 20
			before := connections(w, one, two)
			r, err := w.Requests(n, far, to, "/")
			for i := range r {
				if _, aerr := r[i].Answer(); aerr != nil {
					w.Errorf("a request of the race: %v", aerr)
				}
			}
			if got := connections(w, one, two) - before - 2; err != nil || got < 2*n {
				return fmt.Errorf("%d requests have made %d connections, error %w", n, got, err)
			}
			return nil
		})
		w.Delete(raceEntry(name, race))
	})
}

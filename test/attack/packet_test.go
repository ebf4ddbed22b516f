package attack

import (
	"net/netip"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/sys/packet/packettest"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestFirstPacketThatIsNoSYN is a pod with NET_RAW, which Kubernetes gives to
// every container: before it connects, it sends packets that connection
// tracking takes for a connection without a translation, so that its SYN passes
// the redirection by and reaches the program in plaintext. It tries the pod's
// address and its Service's, from outside of the mesh and from inside of it,
// as a client that policy refuses.
func TestFirstPacketThatIsNoSYN(t *testing.T) {
	t.Parallel()
	world := start(t, rig.PolicyObject("shop", "no-thieves", "DENY", "rules: [{from: [{source: {namespaces: [market]}}]}]")+
		rig.PodObject("street", "stranger1", "node1", ""))
	strangers := map[lab.Where]string{rig.Stranger: "stranger", lab.InPod("street", "stranger1"): "stranger1"}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		pod, service := w.Pod("shop", "web", v6), w.Service("shop", "web", v6)
		to := []netip.AddrPort{netip.AddrPortFrom(pod, 8080), netip.AddrPortFrom(service, 80), netip.AddrPortFrom(pod, 9100)}
		attackers := map[lab.Where]netip.Addr{
			thief1: w.Pod("market", "thief1", v6),
			thief2: w.Pod("market", "thief2", v6),
		}
		for where, name := range strangers {
			attackers[where] = w.Pod("street", name, v6)
		}
		for where, from := range attackers {
			const sequences = 700 // all sets of flags twice, and some that are drawn
			r, err := packettest.Attack{
				In: w.Netns(where).Do, From: from, To: to, Request: "GET / HTTP/1.0\r\n\r\n", Seed: 2, Count: sequences,
			}.Run()
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %d sequences, %d answered, %d neither answered nor refused", where, r.Tried, r.Answered, r.Silent)
			for _, e := range r.Examples {
				t.Errorf("%s is answered after %s", where, e)
			}
		}
		w.MustGet(rig.Near, to[0])
		w.MustGet(rig.Far, to[1])
	})
}

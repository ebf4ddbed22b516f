package ztunnel

import (
	"fmt"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/sys/nft"
)

// A pod that leaves the mesh has no idle tunnels soon: its node agent waits
// for the connections of its proxy, and only for those that somebody uses.
func TestIdleTunnelsGoWithThePod(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.both()
		idle := w.dial(w.at(8080))
		w.talk(idle, "idle")
		busy := w.dial(w.at(8080))
		w.talk(busy, "busy")
		_ = idle.Close()

		tunnels := func(want int) {
			t.Helper()
			netnstest.Eventually(t, fmt.Sprintf("%d connections of the proxy", want), func() bool {
				n, err := nft.Connections(w.server.ns)
				if err != nil {
					t.Fatal(err)
				}
				return n == want
			})
		}
		tunnels(1)
		w.apply(w.mesh("HBONE", "TCP", ""))
		// What runs goes on, and what comes is plaintext.
		for range 3 {
			c := w.dial(w.at(8080))
			w.talk(c, "plain")
			_ = c.Close()
		}
		w.client.log.wait(t, "connection complete", `direction="outbound"`, `dst.addr=`+w.at(8080).String())
		w.talk(busy, "still busy")
		_ = busy.Close()
		tunnels(0)

		// Back in the mesh, tunnels are kept again.
		w.apply(w.mesh("HBONE", "HBONE", ""))
		c := w.dial(w.at(8080))
		w.talk(c, "back")
		_ = c.Close()
		tunnels(1)
	})
}

// A client that does not know better gets its connections carried, but no
// tunnel that stays.
func TestLateClientsOfALeavingPod(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", ""))
	w.enrol(w.server)
	w.serve(8080, echo)
	w.apply(w.mesh("HBONE", "TCP", ""))
	cc, err := w.tunnel(w.bundle(w.certs, account("web")))
	if err != nil {
		t.Fatal(err)
	}
	resp, body, err := w.request(cc, "CONNECT", w.at(8080).String(), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	_, _ = body.Write([]byte("late\n"))
	b := make([]byte, 64)
	if n, err := resp.Body.Read(b); n == 0 {
		t.Fatalf("no answer: %v", err)
	}
	_ = body.Close()
	_ = resp.Body.Close()
	for end := time.Now().Add(netnstest.Timeout); !cc.State().Closed && !cc.State().Closing; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the tunnel stays")
		}
	}
}

package ztunnel

import (
	"errors"
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

// TestTunnelsOfAnEndingPod: a client's tunnels to a pod whose end was asked for end with their
// connections, and none is kept for later. To its successor of the same name they are.
func TestTunnelsOfAnEndingPod(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w.both()
		busy := w.dial(w.at(8080))
		w.talk(busy, "busy")
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
		for _, phase := range []string{"SERVING", "CLOSING"} {
			w.apply(w.mesh("HBONE", "HBONE, ending: "+phase, ""))
			w.talk(busy, "still busy")
			late := w.dial(w.at(8080))
			w.talk(late, "late")
			_ = late.Close()
			tunnels(1)
		}
		w.talk(busy, "still busy")
		w.apply(w.mesh("HBONE", "TCP", "")) // the successor, before it is enrolled
		w.apply(w.mesh("HBONE", "HBONE", ""))
		next := w.dial(w.at(8080))
		w.talk(next, "the successor's")
		tunnels(2)
		w.talk(busy, "the former one's")
		_ = busy.Close()
		tunnels(1)
		_ = next.Close()
		again := w.dial(w.at(8080))
		w.talk(again, "kept")
		_ = again.Close()
		tunnels(1)
	})
}

// TestPeersOfAnEndingPod: a peer that reads nothing of a pod's end, as Istio's, gets GOAWAY on
// its tunnel as soon as the end was asked for. Its stream goes on. A proxy that begins to
// serve the pod after that does the same, and so does one to which the node agent added the
// former pod of the same name once more, before it removed that.
func TestPeersOfAnEndingPod(t *testing.T) {
	for _, when := range []string{"served before", "served after", "after one of the same name"} {
		t.Run(when, func(t *testing.T) {
			w := newWorld(t, false)
			alive, ends := w.mesh("HBONE", "HBONE", ""), w.mesh("HBONE", "HBONE, ending: SERVING", "")
			if when == "served after" {
				alive = ends
			}
			w.apply(alive)
			w.enrol(w.server)
			if when == "after one of the same name" {
				ns, err := netnstest.New(t).Dup()
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(w.server.node.Add(t.Context(), "former", w.server.info, ns), w.server.node.Del(t.Context(), "former")); err != nil {
					t.Fatal(err)
				}
			}
			w.serve(8080, echo)
			cc, err := w.tunnel(w.bundle(w.certs, account("web")))
			if err != nil {
				t.Fatal(err)
			}
			resp, body, err := w.request(cc, "CONNECT", w.at(8080).String(), nil)
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("%v %v", resp, err)
			}
			talk := func(word string) {
				t.Helper()
				_, _ = body.Write([]byte(word))
				b := make([]byte, 64)
				if n, err := resp.Body.Read(b); string(b[:n]) != w.clientIP().String()+" "+word {
					t.Fatalf("%q, error %v", b[:n], err)
				}
			}
			talk("before\n")
			w.apply(ends)
			netnstest.Eventually(t, "the tunnel takes no new streams", func() bool { return !cc.CanTakeNewRequest() })
			talk("after\n")
			_ = body.Close()
			_ = resp.Body.Close()
			netnstest.Eventually(t, "the tunnel ends", func() bool { return cc.State().Closed || cc.State().StreamsActive == 0 })
		})
	}
}

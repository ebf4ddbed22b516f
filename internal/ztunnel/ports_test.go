package ztunnel

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

// A pod's namespace is not closed while a thread is in it: the thread could not
// come back, which ends the program.
func TestPodClosesWhileItsNamespaceIsUsed(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", ""))
	for range 20 {
		w.enrol(w.server)
		p := w.server.node.list()[0]
		over := make(chan struct{})
		for range 4 {
			go func() {
				for p.do(func() error { return nil }) == nil {
				}
				over <- struct{}{}
			}()
		}
		if err := w.server.node.Del(t.Context(), w.server.uid); err != nil {
			t.Fatal(err)
		}
		for range 4 {
			<-over
		}
	}
}

// The proxy's ports are free as soon as the pod has left, also when the proxy's
// loops are busy at that moment: a program in the pod, or the next proxy, can bind them.
func TestPortsAreFreeWhenThePodHasLeft(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", ""))
	for range 5 {
		w.enrol(w.server)
		p := w.server.node.list()[0]
		for i := range w.loops.Len() {
			w.loops.Loop(i).Post(func() { time.Sleep(20 * time.Millisecond) })
		}
		if err := w.server.node.Del(t.Context(), w.server.uid); err != nil {
			t.Fatal(err)
		}
		err := w.server.ns.Do(func() error {
			for _, port := range p.ports() {
				fd, err := sockopt.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), port.number), sockopt.ListenOptions{})
				if err != nil {
					return err
				}
				sockopt.Close(fd)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A program of the pod that has the port of look-ups costs the pod its look-ups alone.
func TestPortOfLookUpsIsTaken(t *testing.T) {
	w := newWorld(t, false)
	w.apply(w.mesh("HBONE", "HBONE", ""))
	l := netnstest.Listen(t, w.server.ns, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), wellknown.PortDNS), nil)
	defer func() { _ = l.Close() }()
	w.enrol(w.client)
	w.enrol(w.server)
	w.serve(8080, echo)
	c := w.dial(w.at(8080))
	w.talk(c, "hello")
	if p := w.server.node.list()[0]; p.dns.State() != nil {
		t.Error("look-ups are served beside another program")
	}
	if p := w.client.node.list()[0]; p.dns.State() == nil {
		t.Error("look-ups of the other pod are not served")
	}
}

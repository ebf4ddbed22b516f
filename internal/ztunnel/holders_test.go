package ztunnel

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
)

func TestJudgeHolder(t *testing.T) {
	for name, c := range map[string]struct {
		holder
		want verdict
	}{
		"the proxy itself":                 {holder{own: true, ours: true, age: time.Hour}, leave},
		"the next generation":              {holder{ours: true, age: time.Second}, leave},
		"the next generation, before this": {holder{ours: true, alone: true, age: time.Second}, leave},
		"it never goes":                    {holder{ours: true, age: generations}, report},
		"a program beside the proxy":       {holder{root: true}, evict},
		"a user beside the proxy":          {holder{}, evict},
		"a user in its place":              {holder{alone: true}, evict},
		"another node proxy":               {holder{alone: true, root: true, age: time.Second}, leave},
		"root in its place":                {holder{alone: true, root: true, age: generations}, evict},
	} {
		if got := c.judge(); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}

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

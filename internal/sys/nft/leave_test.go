package nft

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/internal/sys/netns/netnstest"
	"github.com/ambit-mesh/ambit/internal/sys/nft/nfttest"
)

// Connections are made all the time, in both directions, while a pod joins and
// leaves the mesh again and again: none of them fails, also of those that a pod
// passes on by rules of its own.
func TestConnectionsWhilePodsJoinAndLeave(t *testing.T) {
	t.Run("plain", func(t *testing.T) { joinAndLeave(t, 25, false) })
	t.Run("translates", func(t *testing.T) { joinAndLeave(t, 12, true) })
}

func joinAndLeave(t *testing.T, rounds int, translates bool) {
	inBoth(t, func(t *testing.T, f family) {
		pod, peer := netnstest.Link(t)
		netnstest.Settle(t, pod)
		netnstest.StartProxy(t, pod)
		stop := make(chan struct{})
		var clients sync.WaitGroup
		defer clients.Wait()
		defer close(stop)
		talking := func(from *netns.NS, to netip.AddrPort) {
			for {
				select {
				case <-stop:
					return
				default:
				}
				began := time.Now()
				_, err := talk(from, to, nil)
				if err != nil {
					t.Errorf("connection to %s, made %s ago: %v", to, time.Since(began), err)
				}
			}
		}
		atPod := netnstest.Serve(t, pod, netip.AddrPortFrom(f.pod, 0))
		atPeer := netnstest.Serve(t, peer, netip.AddrPortFrom(f.peer, 0))
		for range 3 {
			clients.Go(func() { talking(peer, atPod) })
			clients.Go(func() { talking(pod, atPeer) })
		}
		if translates {
			service := netip.AddrPortFrom(f.pod, 8443)
			nfttest.Forward(t, pod, service, atPeer)
			for range 3 {
				clients.Go(func() { talking(peer, service) })
			}
		}
		for range rounds {
			apply(t, pod, Config{IPv6: true})
			apply(t, pod, Config{IPv6: true, Quiesce: true})
			for n := 1; n > 0; {
				var err error
				if n, err = Connections(pod); err != nil {
					t.Fatal(err)
				}
			}
			if err := Remove(pod); err != nil {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond) // connections without any table
		}
	})
}

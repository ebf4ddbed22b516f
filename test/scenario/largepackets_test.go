package scenario

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/node/packets"
	"github.com/ambit-mesh/ambit/internal/sys/links"
	"github.com/ambit-mesh/ambit/internal/sys/netns"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestLargePackets: the node agent lets packets of enrolled pods be large: on lo, and with
// its setting pod also on their own interface and the other end of that. Bytes of both
// families arrive whole, and interfaces are as before when pods leave the mesh.
func TestLargePackets(t *testing.T) {
	for name, everywhere := range map[string]bool{"loopback": false, "everywhere": true} {
		t.Run(name, func(t *testing.T) {
			w := rig.Start(t, lab.Config{YAML: shop, LargePackets: everywhere})
			cable := uint32(packets.Default)
			if everywhere {
				cable = packets.Size
			}
			w.Eventually("enrolled pods have large packets", func() error {
				for _, pod := range []lab.Where{near, far, web} {
					if err := errors.Join(sized(w, pod, "lo", packets.Size), sized(w, pod, "eth0", cable)); err != nil {
						return err
					}
				}
				return errors.Join(sized(w, stranger, "lo", packets.Default), sized(w, stranger, "eth0", packets.Default))
			})
			rig.Families(t, func(t *testing.T, v6 bool) {
				w := w.For(t)
				lo, eth := largest(w, web, "lo"), largest(w, web, "eth0")
				transfer(w, w.MustDial(far, netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)), 64<<20)
				if n := lo(); n <= packets.Default {
					t.Errorf("the largest packet on lo had %d bytes", n)
				}
				if n := eth(); (n > packets.Default) != everywhere {
					t.Errorf("the largest packet on eth0 had %d bytes", n)
				}
				// Out of the mesh, and to the same node.
				transfer(w, w.MustDial(stranger, netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)), 16<<20)
				transfer(w, w.MustDial(near, netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)), 16<<20)
			})
			if err := w.Restart(t.Context(), "ambit-cni/node1", lab.RestartKill); err != nil {
				t.Fatal(err)
			}
			w.Settled()
			if err := errors.Join(sized(w, web, "lo", packets.Size), sized(w, web, "eth0", cable)); err != nil {
				t.Errorf("after a restart of the agent: %v", err)
			}
			off := map[string]*string{"istio.io/dataplane-mode": nil}
			if err := w.Label(t.Context(), "namespace", "", "shop", off); err != nil {
				t.Fatal(err)
			}
			w.Eventually("all interfaces of pods are as before", func() error {
				for _, pod := range []lab.Where{near, far, web} {
					if err := errors.Join(sized(w, pod, "lo", packets.Default), sized(w, pod, "eth0", packets.Default)); err != nil {
						return err
					}
				}
				for _, node := range []string{"node1", "node2"} {
					for _, i := range interfaces(w, lab.InNode(node)) {
						if i.Sizes.GSO == packets.Size || i.Sizes.GSOIPv4 == packets.Size {
							return fmt.Errorf("%s of %s: %+v", i.Name, node, i.Sizes)
						}
					}
				}
				return nil
			})
		})
	}
}

func interfaces(w *rig.World, in lab.Where) []links.Interface {
	w.T().Helper()
	l, err := links.Of(w.Netns(in))
	if err != nil {
		w.T().Fatal(err)
	}
	defer l.Close()
	all, err := l.Interfaces()
	if err != nil {
		w.T().Fatal(err)
	}
	return all
}

// sized reports whether an interface has one size of all kinds.
func sized(w *rig.World, in lab.Where, name string, want uint32) error {
	for _, i := range interfaces(w, in) {
		if i.Name == name && i.Sizes != (links.Sizes{GSO: want, GRO: want, GSOIPv4: want, GROIPv4: want}) {
			return fmt.Errorf("%s of %s: %+v, want %d", name, in, i.Sizes, want)
		}
	}
	return nil
}

// largest watches an interface; what it returns ends that, and returns how many bytes the
// largest packet had, without the header of Ethernet.
func largest(w *rig.World, in lab.Where, name string) func() int {
	t := w.T()
	t.Helper()
	fd := packetSocket(t, w.Netns(in), name)
	result := make(chan int, 1)
	stop := make(chan struct{})
	go func() {
		most, b := 0, make([]byte, 64)
		for {
			n, _, err := unix.Recvfrom(fd, b, unix.MSG_TRUNC)
			switch {
			case err == nil:
				most = max(most, n)
			case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
				result <- most
				return
			}
			select {
			case <-stop:
				result <- most
				return
			default:
			}
		}
	}()
	t.Cleanup(func() { _ = unix.Close(fd) })
	return func() int {
		close(stop)
		return <-result
	}
}

// packetSocket makes a socket that gets what passes an interface. A read waits for a
// moment only.
func packetSocket(t testing.TB, ns *netns.NS, name string) int {
	t.Helper()
	const allProtocols = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	fd := -1
	err := ns.Do(func() error {
		var err error
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, allProtocols); err != nil {
			return err
		}
		l, err := links.Of(ns)
		if err != nil {
			return err
		}
		defer l.Close()
		index, err := l.Index(name)
		if err != nil {
			return err
		}
		wait := unix.Timeval{Usec: 50_000}
		return errors.Join(
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: allProtocols, Ifindex: index}))
	})
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

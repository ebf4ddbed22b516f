package scenario

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestEgressChanges: what is open when a policy comes is ended unless it is allowed; what the
// policy allowed stays when another one comes, and ends when its entry goes. A connection that
// sends nothing is not forgotten.
func TestEgressChanges(t *testing.T) {
	world := policied(t)
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		ended := func(what string, c net.Conn) {
			t.Helper()
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			if n, err := c.Read(make([]byte, 1)); n != 0 || !isReset(err) {
				t.Errorf("%s is open: %v", what, err)
			}
		}
		plain, range80 := netip.AddrPortFrom(attacker[v6], 80), netip.AddrPortFrom(partner[v6], 80)
		var before, kept net.Conn
		w.Eventually("nothing confines the pod", func() (err error) {
			before, err = w.Dial(t.Context(), looker, "tcp", plain.String())
			if err == nil {
				_, err = before.Write([]byte("x"))
			}
			if err == nil {
				_ = before.SetReadDeadline(time.Now().Add(20 * time.Second))
				_, err = io.ReadFull(before, make([]byte, 1))
			}
			return err
		})
		kept = w.MustDial(looker, range80)
		sendAndGet(t, kept)
		inside := w.MustDial(looker, netip.AddrPortFrom(w.Service("shop", "web", v6), 9000))
		sendAndGet(t, inside)

		w.MustApply(egressPolicy("shop", "first", fmt.Sprintf("to: [{cidrs: [%q]}, {hosts: [own.evil.test], ports: [80]}]", partner[v6])))
		ended("a connection that the policy does not allow", before)
		w.Logs("node2", `src.workload="looker"`, "dst.addr="+plain.String(), `reason="EGRESS_DENIED"`)
		sendAndGet(t, kept)
		sendAndGet(t, inside)

		finds(w, looker, lanAddr(v6), "udp", "own.evil.test", v6, attacker[v6])
		named, silent := w.MustDial(looker, plain), w.MustDial(looker, plain)
		sendAndGet(t, named)
		w.MustApply(egressPolicy("shop", "second", "to: []"))
		sendAndGet(t, named)
		sendAndGet(t, kept)
		w.MustApply(egressPolicy("shop", "first", fmt.Sprintf("to: [{cidrs: [%q]}]", partner[v6])))
		ended("a connection whose entry went", named)
		ended("one that has sent nothing", silent)
		sendAndGet(t, kept)
		w.MustDelete("EgressPolicy", "shop", "first")
		ended("the last one", kept)
		sendAndGet(t, inside)
		w.MustDelete("EgressPolicy", "shop", "second")
	})
}

// sentUDP returns how many datagrams the agent of node2 has counted that a pod of the shop sent.
func sentUDP(w *rig.World, pod string) (n float64) {
	w.T().Helper()
	w.Eventually("the agent counts the datagrams of "+pod, func() error {
		for _, s := range w.AgentMetrics("node2", "ambit_cni_pod_udp_datagrams_total") {
			if s.Labels["namespace"] == "shop" && s.Labels["pod"] == pod && s.Labels["direction"] == "sent" {
				n = s.Value
				return nil
			}
		}
		return errors.New("no series")
	})
	return n
}

// TestEgressUDP: with udp: Refuse, a pod sends no UDP but for its captured look-ups, from the
// first packet on, and whether or not the agent and the proxy run. Its answers to others pass.
func TestEgressUDP(t *testing.T) {
	world := policied(t)
	echoUDP := func(w *rig.World, in lab.Where, at string) {
		t.Helper()
		err := w.Netns(in).Do(func() error {
			pc, err := net.ListenPacket("udp", at)
			if err != nil {
				return err
			}
			t.Cleanup(func() { _ = pc.Close() })
			go func() {
				b := make([]byte, 2048)
				for {
					n, from, err := pc.ReadFrom(b)
					if err != nil {
						return
					}
					_, _ = pc.WriteTo(b[:n], from)
				}
			}()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	echoUDP(world, lab.LAN, ":7079")
	ping := func(w *rig.World, from lab.Where, to netip.AddrPort) error {
		c, err := w.Dial(t.Context(), from, "udp", to.String())
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		if _, err = c.Write([]byte("ping")); err == nil {
			_, err = io.ReadFull(c, make([]byte, 4))
		}
		return err
	}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		outside := netip.AddrPortFrom(lanAddr(v6), 7079)
		w.Eventually("UDP passes", func() error { return ping(w, looker, outside) })
		before := sentUDP(w, "looker")
		for range 5 {
			if err := ping(w, looker, outside); err != nil {
				t.Error(err)
			}
		}
		if n := sentUDP(w, "looker") - before; n < 5 {
			t.Errorf("%v datagrams were counted of 5", n)
		}
		w.MustApply(egressPolicy("shop", "udp", "to: [{}], udp: Refuse"))
		refused := func(what string, from lab.Where) {
			t.Helper()
			w.Eventually(what, func() error {
				// The kernel reports it to the program at once.
				err := ping(w, from, outside)
				if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ECONNREFUSED) || err != nil && strings.Contains(err.Error(), syscall.EPERM.Error()) {
					return nil
				}
				return fmt.Errorf("not refused: %w", errors.Join(err, errors.New("UDP")))
			})
		}
		refused("UDP is refused", looker)
		for _, program := range []string{"ambit-cni/node2", "ztunnel/node2"} {
			if err := w.Kill(t.Context(), program, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			if err := ping(w, looker, outside); err == nil {
				t.Errorf("UDP passes after the end of %s", program)
			}
		}
		w.Eventually("the proxy is back", func() error {
			return tlsTo(w, looker, netip.AddrPortFrom(partner[v6], 443), "evil.test")
		})
		refused("UDP of a pod without captured look-ups is refused", far)
		finds(w, looker, lanAddr(v6), "udp", "api.partner.test", v6, partner[v6]) // captured
		if err := tlsTo(w, looker, netip.AddrPortFrom(partner[v6], 443), "evil.test"); err != nil {
			t.Errorf("TCP: %v", err)
		}
		if err := ping(w, digger, outside); err != nil {
			t.Errorf("another namespace: %v", err)
		}
		// A server of UDP in the pod answers.
		echoUDP(w, looker, netip.AddrPortFrom(w.Pod("shop", "looker", v6), 7078).String())
		if err := ping(w, digger, netip.AddrPortFrom(w.Pod("shop", "looker", v6), 7078)); err != nil {
			t.Errorf("a server in the pod: %v", err)
		}
		// From the first packet of a new pod on.
		w.MustApply(rig.PodObject("shop", "fresh", "node2", ""))
		w.Eventually("a new pod runs", func() error {
			s, err := w.Status(t.Context())
			if err != nil {
				return err
			}
			for i := range s.Pods {
				if s.Pods[i].Name == "fresh" && s.Pods[i].Ready {
					return nil
				}
			}
			return errors.New("it is not ready")
		})
		if err := ping(w, lab.InPod("shop", "fresh"), outside); err == nil {
			t.Error("a new pod sends UDP")
		}
		w.MustDelete("Pod", "shop", "fresh")
		w.MustDelete("EgressPolicy", "shop", "udp")
		w.Eventually("UDP passes again", func() error { return ping(w, looker, outside) })
	})
}

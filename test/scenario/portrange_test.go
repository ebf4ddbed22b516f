package scenario

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestPortRange: a pod serves more connections of one client than it has
// ports, ended ones included, and can still make connections itself.
func TestPortRange(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: shop})
	const (
		ports = 40
		more  = 4 // in each of six rounds for a family: these share the ports of the pod's own address
	)
	err := world.Netns(web).Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", fmt.Appendf(nil, "40000 %d", 40000+ports-1), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	rig.Families(t, func(t *testing.T, v6 bool) {
		for name, from := range map[string]lab.Where{"near": near, "far": far, "stranger": stranger} {
			t.Run(name, func(t *testing.T) {
				w := world.For(t)
				to := netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)
				for range ports + more {
					says(t, w.MustDial(from, to))
				}
				l := w.Listen(from, ":7100")
				c := w.MustDial(web, netip.AddrPortFrom(w.Pod(map[bool]string{true: "street", false: "shop"}[from == stranger], name, v6), 7100))
				s, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				_, _ = c.Close(), s.Close()
			})
			t.Run(name+", short ones", func(t *testing.T) {
				w := world.For(t)
				to := netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000)
				for range more {
					c := w.MustDial(from, to).(*net.TCPConn)
					says(t, c)
					if err := c.CloseWrite(); err != nil {
						t.Fatal(err)
					}
					if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
						t.Fatal(err)
					}
				}
			})
		}
	})
}

// says has test/echo's port 9000 repeat a byte.
func says(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// TestPausedProxy: a node proxy that stands still for 50 s, as in a snapshot of
// its machine, costs no connection, at either end of a tunnel.
func TestPausedProxy(t *testing.T) {
	t.Parallel()
	w := rig.Start(t, lab.Config{YAML: shop})
	c := w.MustDial(far, netip.AddrPortFrom(w.Pod("shop", "web", false), 9000))
	for _, node := range []string{"node1", "node2"} {
		says(t, c)
		if err := w.Kill(t.Context(), "ztunnel/"+node, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Second) // the length of the pause is what is tested
		if err := w.Kill(t.Context(), "ztunnel/"+node, unix.SIGCONT); err != nil {
			t.Fatal(err)
		}
		says(t, c)
	}
}

package attack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

func deadline() time.Time { return time.Now().Add(time.Minute) }

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

// sharer listens in a pod with everything that root of the pod can set
// without a capability, as the given user.
func sharer(w *rig.World, in lab.Where, address string, uid int) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1), unix.Fchown(int(fd), uid, -1))
		}), err)
	}}
	lc.SetMultipathTCP(false)
	var l net.Listener
	err := w.Netns(in).Do(func() (err error) {
		l, err = lc.Listen(context.Background(), "tcp", address)
		return err
	})
	if err == nil {
		w.T().Cleanup(func() { _ = l.Close() })
	}
	return l, err
}

// TestSharePorts: root in a container, without a capability, listens on the
// proxy's ports beside the proxy (SO_REUSEPORT), to get connections before any
// policy has judged them.
func TestSharePorts(t *testing.T) {
	t.Parallel()
	w := start(t, "")
	for _, port := range []int{15001, 15006, 15008} {
		for _, host := range []string{"[::]", "0.0.0.0", "127.0.0.1", "[::1]", w.Pod("shop", "web", false).String(), "[" + w.Pod("shop", "web", true).String() + "]"} {
			for _, uid := range []int{0, 1000} {
				address := host + ":" + strconv.Itoa(port)
				if _, err := sharer(w, rig.Web, address, uid); !errors.Is(err, syscall.EADDRINUSE) {
					t.Errorf("%s as user %d: %v", address, uid, err)
				}
			}
		}
	}
	// The proxy's own generations share them.
	if err := w.Restart(t.Context(), "ztunnel/node1", lab.RestartGraceful); err != nil {
		t.Fatal(err)
	}
	w.MustGet(rig.Far, netip.AddrPortFrom(w.Pod("shop", "web", false), 8080))
}

// TestTakePortsFirst: a program takes a port of the proxy while the proxy is
// down. Its socket is found, named in the log, and ended, and the proxy serves
// the pod again.
func TestTakePortsFirst(t *testing.T) {
	t.Parallel()
	w := start(t, "")
	if err := w.Stop(t.Context(), "ztunnel/node1", unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var l net.Listener
	w.Eventually("the port is free", func() (err error) {
		l, err = sharer(w, rig.Web, "[::]:15006", 1000)
		return err
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("HTTP/1.0 200 OK\r\n\r\nstolen answers 1.2.3.4"))
			_ = c.Close()
		}
	}()
	if err := w.Continue(t.Context(), "ztunnel/node1"); err != nil {
		t.Fatal(err)
	}
	w.Eventually("the socket is ended", func() error {
		log := w.Log("ztunnel/node1")
		for _, part := range []string{"another program listens on a port of the proxy", "listening socket was ended"} {
			if !strings.Contains(log, part) {
				return fmt.Errorf("the log lacks %q", part)
			}
		}
		return nil
	})
	_ = l.Close()
	w.Settled()
	w.MustGet(rig.Far, netip.AddrPortFrom(w.Pod("shop", "web", false), 8080))
	w.Refused(rig.Stranger, netip.AddrPortFrom(w.Pod("shop", "web", false), 8080))
}

package door

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/peer"

	"github.com/ambit-mesh/ambit/internal/control/auth"
)

// far is one end of a connection whose other end has an address.
type far struct {
	net.Conn
	address string
}

func (f far) RemoteAddr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", f.address)
	if err != nil {
		panic(err) // the test's own
	}
	return a
}

// visit connects to a Door; the context is that of a call on the connection.
func visit(t *testing.T, d *Door, address string) (client net.Conn, c *Conn, ctx context.Context) {
	client, server := net.Pipe()
	c = d.enter(far{server, address}, func(*Conn) {})
	t.Cleanup(func() { _ = client.Close(); _ = c.Close() })
	return client, c, peer.NewContext(t.Context(), &peer.Peer{Addr: c.RemoteAddr()})
}

// ended reports whether a connection has been closed.
func ended(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(time.Nanosecond))
	_, err := c.Read(make([]byte, 1))
	var timeout net.Error
	return err != nil && (!errors.As(err, &timeout) || !timeout.Timeout())
}

var (
	web   = auth.Caller{Namespace: "app", ServiceAccount: "web", PodName: "web-1", PodUID: "1"}
	proxy = auth.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel", PodName: "ztunnel-1", PodUID: "2"}
)

func TestGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counts := map[Cause]int{}
		d := New(Options{Refused: func(c Cause) { counts[c]++ }})
		idle, _, _ := visit(t, d, "192.0.2.1:1")
		known, _, call := visit(t, d, "192.0.2.1:2")
		reviewed, _, review := visit(t, d, "192.0.2.1:3")
		forgotten, _, review2 := visit(t, d, "192.0.2.1:4")
		if err := errors.Join(d.Admitted(call, web, "/m"), d.Undecided(review), d.Undecided(review2)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(9 * time.Second)
		if ended(idle) || ended(known) || ended(reviewed) {
			t.Error("ended before its time")
		}
		time.Sleep(2 * time.Second)
		if !ended(idle) || ended(known) || ended(reviewed) || ended(forgotten) {
			t.Errorf("after the time: %v %v %v", ended(idle), ended(known), ended(reviewed))
		}
		d.Decided(review)
		if err := d.Admitted(review, proxy, "/m"); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		if !ended(forgotten) || ended(reviewed) || ended(known) || counts[Silent] != 2 || d.Waiting() != 0 {
			t.Errorf("%v, %d wait", counts, d.Waiting())
		}
	})
}

func TestBeforeAuthenticationLittleIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		counts := map[Cause]int{}
		d := New(Options{Refused: func(c Cause) { counts[c]++ }, Limits: Limits{Bytes: 1000, Refusals: 3, Reviews: 2}})
		talker, c, _ := visit(t, d, "192.0.2.1:1")
		go func() { _, _ = talker.Write(make([]byte, 2000)) }()
		n, err := 0, error(nil)
		for err == nil && n < 5000 {
			var k int
			k, err = c.Read(make([]byte, 100))
			n += k
		}
		if n != 1000 || err == nil || counts[TooMuch] != 1 {
			t.Errorf("%d bytes were read: %v %v", n, err, counts)
		}
		guesser, _, call := visit(t, d, "192.0.2.1:2")
		for i := range 4 {
			if ended(guesser) {
				t.Errorf("ended after %d refusals", i)
			}
			d.Refused(call, i == 0)
		}
		if !ended(guesser) || counts[Anonymous] != 1 || counts[NotAdmitted] != 3 || counts[TooMuch] != 2 {
			t.Errorf("a guesser goes on: %v", counts)
		}
		_, _, call = visit(t, d, "192.0.2.1:3")
		first, second, third := d.Undecided(call), d.Undecided(call), d.Undecided(call)
		if first != nil || second != nil || third == nil {
			t.Error("reviews are not bounded")
		}
		d.Decided(call)
		if err := d.Undecided(call); err != nil {
			t.Error(err)
		}
	})
}

func TestConnectionsOfOneCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node := func(c auth.Caller) bool { return c.ServiceAccount == "ztunnel" }
		d := New(Options{NodeProxy: node, Limits: Limits{Owner: 2, Others: 3},
			Largest: func(_ auth.Caller, method string) int { return map[string]int{"/xds": 1 << 20}[method] }})
		admit := func(c auth.Caller) (*Conn, error) {
			_, conn, call := visit(t, d, "192.0.2.1:1")
			return conn, d.Admitted(call, c, "/xds")
		}
		first, err := admit(web)
		if err != nil || first.limit.Load() != 1<<20 {
			t.Fatalf("%v, may send %d", err, first.limit.Load())
		}
		if _, err := admit(web); err != nil {
			t.Error(err)
		}
		if _, err := admit(web); err == nil {
			t.Error("a third connection of a pod")
		}
		_ = first.Close()
		if _, err := admit(web); err != nil {
			t.Errorf("after one has ended: %v", err)
		}
		other := web
		other.PodName, other.PodUID = "web-2", "3"
		if _, err := admit(other); err != nil {
			t.Errorf("another pod: %v", err)
		}
		if _, err := admit(other); err == nil {
			t.Error("others have more than their share of all")
		}
		if _, err := admit(proxy); err != nil {
			t.Errorf("a node proxy: %v", err)
		}
		// A second call needs no second place, and changes no limit.
		_, conn, call := visit(t, d, "192.0.2.1:1")
		if err := errors.Join(d.Admitted(call, proxy, "/csr"), d.Admitted(call, proxy, "/csr")); err != nil || conn.limit.Load() != SmallMessage {
			t.Errorf("%v, may send %d", err, conn.limit.Load())
		}
		Settled(call)
	})
}

func TestPeers(t *testing.T) {
	for address, want := range map[string]string{
		"192.0.2.1:80": "192.0.2.1", "[::ffff:192.0.2.1]:80": "192.0.2.1",
		"[2001:db8:1:2:3::4]:80": "2001:db8:1:2::/64", "[2001:db8:1:2::ffff]:1": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64",
	} {
		if got := peerOf(textAddr(address)); got != want {
			t.Errorf("%s counts for %s, not %s", address, got, want)
		}
	}
}

type textAddr string

func (a textAddr) Network() string { return "tcp" }
func (a textAddr) String() string  { return string(a) }

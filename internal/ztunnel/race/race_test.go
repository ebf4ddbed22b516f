package race

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/sys/sockopt"
	"github.com/ambit-mesh/ambit/internal/ztunnel/budget"
)

// listening returns an address where connections are accepted.
func listening(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return netip.MustParseAddrPort(l.Addr().String())
}

// closed returns an address where they are refused.
func closed(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return netip.MustParseAddrPort(l.Addr().String())
}

// silent returns an address that does not answer: its queue of connections is full.
func silent(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := sockopt.Stream(netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sockopt.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	at, err := sockopt.LocalAddr(fd)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c, err := sockopt.Stream(at.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { sockopt.Close(c) })
		_, _ = sockopt.ConnectNow(c, at)
	}
	return at
}

type outcome struct {
	at  netip.AddrPort
	err error
}

// run races, and returns the outcome. At the end all descriptors are given back.
func run(t *testing.T, delay time.Duration, share int64, to ...netip.AddrPort) outcome {
	t.Helper()
	g, err := poll.NewGroup(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	l := g.Pick(0)
	results := make(chan outcome, 2)
	own := budget.New(share).Join()
	l.Post(func() {
		(&Race{
			Loop: l, To: to, Delay: delay, Timeout: 20 * time.Second, Socket: sockopt.Stream, Share: own,
			Done: func(fd int, at netip.AddrPort, err error) {
				if err == nil {
					sockopt.Close(fd)
				}
				results <- outcome{at, err}
			},
		}).Start()
	})
	var got outcome
	select {
	case got = <-results:
	case <-time.After(20 * time.Second):
		t.Fatal("the race does not end")
	}
	for end := time.Now().Add(20 * time.Second); own.Used() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("descriptors are not given back")
		}
	}
	if len(results) > 0 {
		t.Error("it ends twice")
	}
	return got
}

// TestRace: the first address that answers is taken, whatever the others do.
func TestRace(t *testing.T) {
	good, other, bad, mute := listening(t), listening(t), closed(t), silent(t)
	const never = time.Hour
	for name, tt := range map[string]struct {
		delay time.Duration
		share int64
		to    []netip.AddrPort
		want  []netip.AddrPort // one of them; none: an error
	}{
		"one address":                     {never, 9, []netip.AddrPort{good}, []netip.AddrPort{good}},
		"the preferred one":               {never, 9, []netip.AddrPort{good, other}, []netip.AddrPort{good}},
		"the next after one that refuses": {never, 9, []netip.AddrPort{bad, good}, []netip.AddrPort{good}},
		"the next after one that is mute": {Delay, 9, []netip.AddrPort{mute, good}, []netip.AddrPort{good}},
		"all at once":                     {0, 9, []netip.AddrPort{mute, bad, good, other}, []netip.AddrPort{good, other}},
		"none":                            {0, 9, []netip.AddrPort{bad, closed(t)}, nil},
		"no share":                        {0, 0, []netip.AddrPort{bad, good}, nil},
		"no address":                      {0, 0, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := run(t, tt.delay, tt.share, tt.to...)
			if len(tt.want) == 0 && got.err == nil || len(tt.want) > 0 && (got.err != nil || got.at != tt.want[0] && got.at != tt.want[len(tt.want)-1]) {
				t.Errorf("%v, want one of %v", got, tt.want)
			}
		})
	}
}

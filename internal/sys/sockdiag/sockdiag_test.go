package sockdiag

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t *testing.T) *Diag {
	t.Helper()
	d, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// pair returns both ends of a connection.
func pair(t *testing.T, network, to string) (client, server net.Conn, l net.Listener) {
	t.Helper()
	l, err := net.Listen(network, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	host, _, _ := net.SplitHostPort(to)
	if host == "" {
		host = "127.0.0.1"
	}
	client, err = net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(l.Addr().(*net.TCPAddr).Port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	_ = client.SetDeadline(time.Now().Add(20 * time.Second))
	return client, server, l
}

func at(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func find(t *testing.T, d *Diag, states States, local netip.AddrPort) *Socket {
	t.Helper()
	all, err := d.List(states)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(s Socket) bool { return s.Local == local })
	if i < 0 {
		t.Fatalf("no socket at %s", local)
	}
	return &all[i]
}

func TestConnections(t *testing.T) {
	for name, to := range map[string][2]string{
		"IPv4": {"tcp4", "127.0.0.1:0"}, "IPv6": {"tcp6", "[::1]:0"}, "mapped": {"tcp", ":0"},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t)
			client, server, _ := pair(t, to[0], to[1])
			s := find(t, d, Connected, at(server.LocalAddr()))
			if s.Remote != at(client.LocalAddr()) || s.Listens || s.UID != 0 || s.Inode == 0 || s.Key() == 0 {
				t.Errorf("%+v", s)
			}
			if ok, err := d.Find(s); !ok || err != nil {
				t.Errorf("%v, %v", ok, err)
			}
			other := *s
			other.id[idLen-1] ^= 1
			if err := d.Destroy(&other); !errors.Is(err, ErrGone) {
				t.Errorf("a socket with another cookie: %v", err)
			}
			if err := d.Destroy(s); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the peer read %v", err)
			}
			if _, err := server.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNABORTED) && !errors.Is(err, io.EOF) {
				t.Errorf("the owner read %v", err)
			}
			if ok, err := d.Find(s); ok || err != nil {
				t.Errorf("afterwards: %v, %v", ok, err)
			}
			if err := d.Destroy(s); !errors.Is(err, ErrGone) {
				t.Errorf("again: %v", err)
			}
		})
	}
}

func TestListeners(t *testing.T) {
	for network, to := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0", "tcp": ":0"} {
		d := open(t)
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // of which the kernel shows a part only
		l, err := lc.Listen(t.Context(), network, to)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := l.(*net.TCPListener).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		var statErr error
		if err := raw.Control(func(fd uintptr) {
			statErr = errors.Join(unix.Fchown(int(fd), 2147484985, -1), unix.Fstat(int(fd), &st))
		}); err != nil || statErr != nil {
			t.Fatal(err, statErr)
		}
		s := find(t, d, Listening, at(l.Addr()))
		if !s.Listens || uint64(s.Inode) != st.Ino || s.UID != 2147484985 {
			t.Errorf("%+v", s)
		}
		if err := d.Destroy(s); err != nil {
			t.Fatal(err)
		}
		if _, err := net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("afterwards: %v", err)
		}
		_ = l.Close()
	}
}

func TestUncaptured(t *testing.T) {
	sock := func(local, remote string) Socket {
		s := Socket{Local: netip.MustParseAddrPort(local)}
		if s.Listens = remote == ""; !s.Listens {
			s.Remote = netip.MustParseAddrPort(remote)
		}
		return s
	}
	all := []Socket{
		sock("[::]:8080", ""), sock("10.0.0.1:9000", ""), sock("[::]:15006", ""),
		sock("10.0.0.1:8080", "10.0.0.9:40000"),                                          // from outside
		sock("[fd00::1]:8080", "[fd00::9]:40000"),                                        // from outside
		sock("10.0.0.1:9000", "10.0.0.9:40000"),                                          // from outside
		sock("10.0.0.1:8080", "10.0.0.9:41000"), sock("10.0.0.9:41000", "10.0.0.1:8080"), // captured
		sock("[fd00::1]:8080", "[fd00::9]:41000"), sock("[fd00::9]:41000", "[fd00::1]:8080"), // captured
		sock("10.0.0.1:8080", "10.0.0.1:42000"), sock("10.0.0.1:42000", "10.0.0.1:8080"), // within the pod
		sock("127.0.0.1:8080", "127.0.0.1:42000"), sock("127.0.0.1:42000", "127.0.0.1:8080"), // loopback
		sock("10.0.0.1:43000", "10.0.0.9:443"),                                           // outbound
		sock("10.0.0.2:9000", "10.0.0.9:40000"),                                          // its listener has closed
		sock("10.0.0.1:8080", "10.0.0.8:41000"), sock("10.0.0.8:41001", "10.0.0.1:8080"), // one from outside, and half of another
	}
	var got []string
	for _, s := range Uncaptured(all, Ports{32768, 60999}) {
		got = append(got, s.Local.String()+" "+s.Remote.String())
	}
	want := []string{
		"10.0.0.1:8080 10.0.0.9:40000", "[fd00::1]:8080 [fd00::9]:40000", "10.0.0.1:9000 10.0.0.9:40000",
		"10.0.0.2:9000 10.0.0.9:40000", "10.0.0.1:8080 10.0.0.8:41000", "10.0.0.8:41001 10.0.0.1:8080",
	}
	// The proxy's half of a connection whose program has gone is none of the
	// program's; its port here is ephemeral.
	want = want[:5]
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}, true)
	f.Fuzz(func(_ *testing.T, p []byte, dump bool) {
		_, _ = read(p, 1, dump, func(b []byte) { _, _ = parse(b) })
	})
}

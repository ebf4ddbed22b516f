package trace

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
)

// frame builds an Ethernet frame with TCP over IPv4 or IPv6.
func frame(src, dst string, flags byte, payload string) []byte {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	tcp := make([]byte, tcpLen, tcpLen+len(payload))
	binary.BigEndian.PutUint16(tcp, s.Port())
	binary.BigEndian.PutUint16(tcp[2:], d.Port())
	tcp[12], tcp[13] = 5<<4, flags
	tcp = append(tcp, payload...)
	b := make([]byte, etherLen)
	if s.Addr().Is4() {
		binary.BigEndian.PutUint16(b[12:], etherIPv4)
		ip := make([]byte, ipv4Len)
		ip[0], ip[9] = 0x45, protoTCP
		binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Len+len(tcp)))
		copy(ip[12:], s.Addr().AsSlice())
		copy(ip[16:], d.Addr().AsSlice())
		return append(append(append(b, ip...), tcp...), 0, 0, 0) // and padding
	}
	binary.BigEndian.PutUint16(b[12:], etherIPv6)
	ip := make([]byte, ipv6Len)
	ip[0], ip[6] = 0x60, protoTCP
	binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
	copy(ip[8:], s.Addr().AsSlice())
	copy(ip[24:], d.Addr().AsSlice())
	return append(append(b, ip...), tcp...)
}

const record = "\x17\x03\x03\x00\x20"

func TestKinds(t *testing.T) {
	const c, web, tunnel, xds = "10.88.1.16:40000", "10.88.2.16:8080", "10.88.2.16:15008", "[fd88::1]:15012"
	noise := strings.Repeat("\x91\xfe\x03\xcc", 8)
	for name, tc := range map[string]struct {
		dst       string
		payloads  []string
		kind      Kind
		plaintext bool
		marks     int
	}{
		"http":                        {web, []string{"GET / HTTP/1.1\r\n"}, Plaintext, true, 0},
		"http with the secret":        {web, []string{"GET /secret HTTP/1.1\r\n"}, Plaintext, true, 1},
		"binary protocol":             {web, []string{noise}, Plaintext, true, 0},
		"tunnel":                      {tunnel, []string{"\x16\x03\x01\x01\x00xx", record + noise, noise}, HBONE, false, 0},
		"tunnel from the middle":      {tunnel, []string{noise, noise}, Opaque, false, 0},
		"tunnel, then a whole record": {tunnel, []string{noise, record + noise}, HBONE, false, 0},
		"text to the tunnel's port":   {tunnel, []string{"CONNECT 10.88.2.16:8080 HTTP/1.1"}, Plaintext, true, 0},
		"the secret in a tunnel":      {tunnel, []string{record + "secret"}, Plaintext, true, 1},
		"other tls":                   {xds, []string{"\x16\x03\x01\x01\x00xx"}, TLS, false, 0},
		"nothing":                     {web, []string{""}, Silent, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			src := c
			if tc.dst == xds {
				src = "[fd88::b]:40000"
			}
			tr := NewTracer("secret")
			tr.Frame(frame(src, tc.dst, flagSYN, ""))
			tr.Frame(frame(tc.dst, src, flagSYN|flagACK, ""))
			for _, p := range tc.payloads {
				tr.Frame(frame(src, tc.dst, flagACK, p))
			}
			r := tr.Report()
			if len(r.Flows) != 1 {
				t.Fatalf("flows: %+v", r.Flows)
			}
			f := r.Flows[0]
			if f.Kind != tc.kind || f.Plaintext != tc.plaintext || f.Marks != tc.marks {
				t.Errorf("got %+v", f)
			}
			if f.Client.String() != src || f.Server.String() != tc.dst {
				t.Errorf("ends: %s, %s", f.Client, f.Server)
			}
		})
	}
}

// TestMiddle: of a flow whose beginning was not seen, only text is proof.
func TestMiddle(t *testing.T) {
	for payload, want := range map[string]Kind{
		strings.Repeat("\x91\xfe\x03\xcc", 8): Opaque, "the answer is forty-two": Plaintext, record: TLS,
	} {
		tr := NewTracer("")
		tr.Frame(frame("10.0.0.1:40000", "10.0.0.2:15012", flagACK, payload))
		if f := tr.Report().Flows[0]; f.Kind != want || f.Server.Port() != 15012 {
			t.Errorf("%q: %+v", payload, f)
		}
	}
}

// TestPortsAgain: a new connection between the same ports is a flow of its own.
func TestPortsAgain(t *testing.T) {
	tr := NewTracer("")
	for range 2 {
		tr.Frame(frame("10.0.0.1:1", "10.0.0.2:80", flagSYN, ""))
		tr.Frame(frame("10.0.0.1:1", "10.0.0.2:80", flagACK, "x"))
	}
	if n := len(tr.Report().Flows); n != 2 {
		t.Errorf("%d flows", n)
	}
}

func TestBound(t *testing.T) {
	tr := NewTracer("")
	for i := range maxFlows + 5 {
		a := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 1000)
		tr.Frame(frame(a.String(), "10.1.0.2:80", flagACK, "x"))
	}
	if r := tr.Report(); len(r.Flows) != maxFlows || r.Forgotten != 5 {
		t.Errorf("%d flows, %d forgotten", len(r.Flows), r.Forgotten)
	}
}

// FuzzFrame: frames come from whatever runs in the lab.
func FuzzFrame(f *testing.F) {
	f.Add(frame("10.0.0.1:1", "10.0.0.2:15008", flagACK, record))
	f.Add(frame("[fd88::1]:1", "[fd88::2]:80", flagSYN, "x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		tr := NewTracer("x")
		tr.Frame(b)
		if r := tr.Report(); len(r.Flows) > 1 || r.Frames != 1 {
			t.Errorf("%+v", r)
		}
	})
}

package proxyproto

import (
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestWireFormat(t *testing.T) {
	got := hex.EncodeToString(Append(nil, Header{
		Src:      netip.MustParseAddrPort("10.1.2.3:4660"),
		Dst:      netip.MustParseAddrPort("10.4.5.6:80"),
		Identity: "spiffe://td/ns/a/sa/b",
	}))
	const want = "0d0a0d0a000d0a515549540a" + "21" + "11" + "0024" + "0a010203" + "0a040506" + "1234" + "0050" +
		"d0" + "0015" + "7370696666653a2f2f74642f6e732f612f73612f62"
	if got != want {
		t.Errorf("\ngot  %s\nwant %s", got, want)
	}
}

func TestRoundTrip(t *testing.T) {
	v4, v6 := netip.MustParseAddrPort("10.1.2.3:1"), netip.MustParseAddrPort("[fd00::1]:65535")
	for _, h := range []Header{{v4, v4, ""}, {v6, v6, "spiffe://td/ns/a/sa/b"}, {v4, v6, "x"}, {v6, v4, strings.Repeat("x", maxIdentity)}} {
		b := append(Append(nil, h), "data"...)
		got, n, err := Decode(b)
		if err != nil || got != h || string(b[n:]) != "data" {
			t.Errorf("%v: %v %d %v", h, got, n, err)
		}
		for i := range n {
			if _, _, err := Decode(b[:i]); !errors.Is(err, ErrIncomplete) {
				t.Fatalf("%v: first %d bytes: %v", h, i, err)
			}
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(Append(nil, Header{netip.MustParseAddrPort("10.1.2.3:1"), netip.MustParseAddrPort("10.1.2.4:1"), "id"}))
	f.Add([]byte(signature + "\x20\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Decode(b)
		if err != nil || !h.Src.IsValid() || len(h.Identity) > maxIdentity {
			return
		}
		if n > len(b) {
			t.Fatalf("%d of %d bytes", n, len(b))
		}
		if again, _, err := Decode(Append(nil, h)); err != nil || again != h {
			t.Fatalf("%v then %v, %v", h, again, err)
		}
	})
}

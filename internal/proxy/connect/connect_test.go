package connect

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestParseTarget(t *testing.T) {
	for _, tc := range []struct {
		in, want string
		host     bool
	}{
		{"10.0.0.1:80", "10.0.0.1:80", false},
		{"[fd00::1]:8080", "[fd00::1]:8080", false},
		{"[::ffff:10.0.0.1]:80", "10.0.0.1:80", false},
		{"cart.shop.svc.cluster.local:80", "cart.shop.svc.cluster.local:80", true},
		{"CART.shop:443", "cart.shop:443", true},
		{"a_b.shop:443", "a_b.shop:443", true},
		{"10.0.0.1", "", false},
		{"10.0.0.1:", "", false},
		{"10.0.0.1:0", "", false},
		{"10.0.0.1:080", "", false},
		{"10.0.0.1:+80", "", false},
		{"10.0.0.1:65536", "", false},
		{"fd00::1:80", "", false},
		{"[10.0.0.1]:80", "", false},
		{"[fe80::1%eth0]:80", "", false},
		{"[fd00::1:80", "", false},
		{"10.0.0.300:80", "", false},
		{"host/path:80", "", false},
		{"user@host:80", "", false},
		{"-a.b:80", "", false},
		{"a..b:80", "", false},
		{":80", "", false},
		{"", "", false},
		{strings.Repeat("a", 64) + ".b:80", "", false},
		{strings.Repeat("a.", 200) + "b:80", "", false},
	} {
		got, err := ParseTarget(tc.in)
		if got.String() != tc.want || (err == nil) != (tc.want != "") || got.IsHost() != tc.host {
			t.Errorf("ParseTarget(%q) = %v, %v", tc.in, got, err)
		}
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Errorf("ParseTarget(%q): %v is not ErrMalformed", tc.in, err)
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	f.Add("10.0.0.1:80")
	f.Add("[fd00::1]:80")
	f.Add("svc.ns:80")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseTarget(s)
		if err != nil {
			return
		}
		b, err := ParseTarget(a.String())
		if err != nil || a != b || a.TargetPort() == 0 {
			t.Fatalf("%q: %v then %v, %v", s, a, b, err)
		}
	})
}

func TestBaggage(t *testing.T) {
	b := Baggage{Cluster: "Kubernetes", Namespace: "shop", WorkloadType: "deployment", Workload: "cart", Service: "cart", Version: "v1", Region: "r", Zone: "z"}
	const want = "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=cart,service.name=cart,service.version=v1,cloud.region=r,cloud.availability_zone=z"
	if got := b.String(); got != want {
		t.Errorf("got %s", got)
	}
	if got, err := ParseBaggage(want); got != b || err != nil {
		t.Errorf("%+v %v", got, err)
	}
	if got := (Baggage{Namespace: "shop"}).String(); got != "k8s.namespace.name=shop" {
		t.Errorf("got %s", got)
	}
	got, err := ParseBaggage(`k8s.cluster.name=, k8s.namespace.name = a ;p=1,service.name="x",junk,=,k8s.pod.name=p`)
	if err != nil || got != (Baggage{Namespace: "a", WorkloadType: "pod", Workload: "p"}) {
		t.Errorf("%+v %v", got, err)
	}
	if _, err := ParseBaggage(strings.Repeat("a", maxBaggage+1)); !errors.Is(err, ErrMalformed) {
		t.Error("a long baggage was read")
	}
}

func FuzzParseBaggage(f *testing.F) {
	f.Add("k8s.cluster.name=K,k8s.namespace.name=n,k8s.pod.name=p,service.name=s")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseBaggage(s)
		if err != nil {
			return
		}
		b, err := ParseBaggage(a.String())
		if a.Workload == "" {
			a.WorkloadType, b.WorkloadType = "", ""
		}
		if err != nil || a != b {
			t.Fatalf("%q: %+v then %+v, %v", s, a, b, err)
		}
	})
}

func TestForwarded(t *testing.T) {
	src := netip.MustParseAddrPort("10.0.0.1:4000")
	six := netip.MustParseAddrPort("[fd00::1]:4000")
	for _, tc := range []struct {
		src  netip.AddrPort
		host string
		want string
	}{
		{src, "", `for="10.0.0.1:4000"`},
		{six, "", `for="[fd00::1]:4000"`},
		{src, "example.com", `for="10.0.0.1:4000";host=example.com`},
	} {
		if got := Forwarded(tc.src, tc.host); got != tc.want {
			t.Errorf("got %s", got)
		}
		if a, h, err := ParseForwarded(tc.want); a != tc.src || h != tc.host || err != nil {
			t.Errorf("ParseForwarded(%s) = %v, %q, %v", tc.want, a, h, err)
		}
	}
	for in, host := range map[string]string{
		`Host=A.b;for=_hidden`:            "a.b",
		`for=192.0.2.43, for=198.51.10.1`: "",
		`host="a.b:80"`:                   "a.b",
		`host=a.b:80`:                     "a.b",
		`host="a b"`:                      "",
		``:                                "",
	} {
		if _, h, err := ParseForwarded(in); h != host || err != nil {
			t.Errorf("ParseForwarded(%s) = %q, %v", in, h, err)
		}
	}
	for in, src := range map[string]string{
		`for=192.0.2.43;host=a.b`: "192.0.2.43:0", `for="[2001:db8::1]"`: "[2001:db8::1]:0", `for=_hidden`: "invalid AddrPort", `for="[2001:db8::1"`: "invalid AddrPort",
		`for="[fe80::1%eth0]"`: "invalid AddrPort", `for="[2001:db8::1]:80"`: "[2001:db8::1]:80",
	} {
		if a, _, err := ParseForwarded(in); a.String() != src || err != nil {
			t.Errorf("ParseForwarded(%s) = %v, %v", in, a, err)
		}
	}
	for _, in := range []string{`for`, `for="x`, `=x`, `for=x;`, `for="a"b`, `for="\`, "host=a\nb", `for = x`} {
		if a, h, err := ParseForwarded(in); !errors.Is(err, ErrMalformed) || a.IsValid() || h != "" {
			t.Errorf("ParseForwarded(%q) = %v %q %v", in, a, h, err)
		}
	}
}

func FuzzParseForwarded(f *testing.F) {
	f.Add(`for="10.0.0.1:80";host=a.b`)
	f.Add(`host="a\"b";by=x`)
	f.Fuzz(func(t *testing.T, s string) {
		_, host, err := ParseForwarded(s)
		if err == nil && host != "" && !validHost(host) {
			t.Fatalf("%q: host %q", s, host)
		}
	})
}

func TestTrace(t *testing.T) {
	a := NewTrace()
	if b, err := ParseTrace(a.String()); b != a || err != nil || len(a.TraceID()) != 32 {
		t.Fatalf("%v %v %v", a, b, err)
	}
	for _, s := range []string{
		"", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
		"01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01",
		"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
		"00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-zz",
		"00-0af7651916cd43dd8448eb211c80319cxb7ad6b7169203331-01",
	} {
		if got, err := ParseTrace(s); err == nil {
			t.Errorf("ParseTrace(%q) = %v", s, got)
		}
	}
	for flags, want := range map[string]Decision{"00": Undecided, "01": Sampled, "02": Dropped, "03": Sampled, "04": Undecided, "ff": Sampled} {
		got, err := ParseTrace("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-" + flags)
		if err != nil || got.Decision != want {
			t.Errorf("flags %s: %v, error %v", flags, got.Decision, err)
		}
		if again, err := ParseTrace(got.String()); err != nil || again != got {
			t.Errorf("%v became %v, error %v", got, again, err)
		}
	}
	if (Trace{}).TraceID() != "" {
		t.Error("no trace has an id")
	}
}

func FuzzParseTrace(f *testing.F) {
	f.Add("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	f.Fuzz(func(t *testing.T, s string) {
		if a, err := ParseTrace(s); err == nil && a.String()[:53] != s[:53] {
			t.Fatalf("%q: %v", s, a)
		}
	})
}

func TestHops(t *testing.T) {
	for in, want := range map[string]Hops{"": 0, "1": 1, "255": 255} {
		got, err := ParseHops(in)
		if got != want || err != nil || got.String() != in {
			t.Errorf("%q: %v, error %v", in, got, err)
		}
	}
	for _, in := range []string{"0", "-1", "+1", "01", "256", "1,1", "1 ", " 1", "x", "0x1", "1e0", strings.Repeat("9", 1000)} {
		if got, err := ParseHops(in); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v, error %v", in, got, err)
		}
	}
}

func FuzzParseHops(f *testing.F) {
	f.Add("4")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseHops(s)
		if err == nil && n.String() != s {
			t.Fatalf("%q: %v", s, n)
		}
	})
}

package dns

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// TestGiven: the addresses of a response are those of the name that was asked for, whatever else
// it has.
func TestGiven(t *testing.T) {
	for _, tt := range []struct {
		name, question string
		kind           uint16
		answer         string
		edit           func(*dns.Msg)
		want           string
	}{
		{"an address", "A.test.", dns.TypeA, "a.test. 30 IN A 192.0.2.1", nil, "a.test: 192.0.2.1/30"},
		{"several", "a.test.", dns.TypeA, "a.test. 30 IN A 192.0.2.1\na.test. 40 IN A 192.0.2.2", nil, "a.test: 192.0.2.1/30 192.0.2.2/40"},
		{"IPv6", "a.test.", dns.TypeAAAA, "a.test. 30 IN AAAA 2001:db8::1", nil, "a.test: 2001:db8::1/30"},
		{"an alias", "a.test.", dns.TypeA, "a.test. 5 IN CNAME b.test.\nb.test. 30 IN A 192.0.2.1", nil, "a.test: 192.0.2.1/5"},
		{"aliases in another order", "a.test.", dns.TypeA, "c.test. 30 IN A 192.0.2.1\nb.test. 60 IN CNAME c.test.\na.test. 60 IN CNAME B.test.", nil, "a.test: 192.0.2.1/30"},
		{"an address of another name", "a.test.", dns.TypeA, "evil.test. 30 IN A 192.0.2.66", nil, ""},
		{"beside the right one", "a.test.", dns.TypeA, "a.test. 30 IN A 192.0.2.1\nevil.test. 30 IN A 192.0.2.66", nil, "a.test: 192.0.2.1/30"},
		{"an alias of another name", "a.test.", dns.TypeA, "evil.test. 30 IN CNAME a.test.\nevil.test. 30 IN A 192.0.2.66", nil, ""},
		{"a circle", "a.test.", dns.TypeA, "a.test. 30 IN CNAME b.test.\nb.test. 30 IN CNAME a.test.", nil, ""},
		{"another type", "a.test.", dns.TypeTXT, "a.test. 30 IN A 192.0.2.1", nil, ""},
		{"another class", "a.test.", dns.TypeA, "a.test. 30 CH A 192.0.2.1", nil, ""},
		{"no such name", "a.test.", dns.TypeA, "a.test. 30 IN A 192.0.2.1", func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }, ""},
		{"a question", "a.test.", dns.TypeA, "a.test. 30 IN A 192.0.2.1", func(m *dns.Msg) { m.Response = false }, ""},
		{"beside records of other types", "a.test.", dns.TypeA, "a.test. 30 IN TXT \"x\"\na.test. 30 IN A 192.0.2.1", nil, "a.test: 192.0.2.1/30"},
	} {
		m := new(dns.Msg).SetQuestion(tt.question, tt.kind)
		m.Response = true
		for line := range strings.SplitSeq(tt.answer, "\n") {
			rr, err := dns.NewRR(line)
			if err != nil {
				t.Fatal(err)
			}
			m.Answer = append(m.Answer, rr)
		}
		if tt.edit != nil {
			tt.edit(m)
		}
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if got := readGiven(b); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
		for i := range b {
			readGiven(b[:i])
		}
	}
	many := new(dns.Msg).SetQuestion("a.test.", dns.TypeA)
	many.Response = true
	for i := range 3 * maxGiven {
		rr, _ := dns.NewRR(fmt.Sprintf("a.test. 30 IN A 192.0.2.%d", i))
		many.Answer = append(many.Answer, rr)
	}
	b, _ := many.Pack()
	n := 0
	if _, ok := Given(b, func(netip.Addr, uint32) { n++ }); !ok || n != maxGiven {
		t.Errorf("%d addresses of one response", n)
	}
}

func readGiven(b []byte) string {
	var out []string
	name, ok := Given(b, func(a netip.Addr, ttl uint32) { out = append(out, fmt.Sprintf("%s/%d", a, ttl)) })
	if !ok {
		return ""
	}
	return name + ": " + strings.Join(out, " ")
}

func FuzzGiven(f *testing.F) {
	m := new(dns.Msg).SetQuestion("a.test.", dns.TypeA)
	m.Response = true
	for _, line := range []string{"a.test. 5 IN CNAME b.test.", "b.test. 30 IN A 192.0.2.1"} {
		rr, _ := dns.NewRR(line)
		m.Answer = append(m.Answer, rr)
	}
	b, _ := m.Pack()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		name, ok := Given(b, func(a netip.Addr, _ uint32) {
			n++
			if !a.IsValid() {
				t.Fatal("an address that is none")
			}
		})
		if ok != (n > 0) || len(name) > 2*maxName || n > maxGiven {
			t.Fatalf("%q, %v, %d addresses", name, ok, n)
		}
	})
}

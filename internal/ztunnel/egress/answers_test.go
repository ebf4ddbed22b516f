package egress

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/ztunnel/budget"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func namesAt(a *Answers, addr string, now time.Time) string {
	var out []string
	for _, n := range a.Names(nil, netip.MustParseAddr(addr), now) {
		out = append(out, n.Host+"@"+n.Origin.Entry)
	}
	return strings.Join(out, " ")
}

// TestAnswers: an answer counts for its time to live and the grace, for its address alone; the
// last look-up comes first; what is no name is not kept.
func TestAnswers(t *testing.T) {
	var a Answers
	add := func(host, addr string, ttl time.Duration, now time.Time) {
		a.Add(host, egress.Origin{}, netip.MustParseAddr(addr), ttl, now)
	}
	add("A.Test.", "192.0.2.1", time.Minute, start)
	add("b.test", "::ffff:192.0.2.1", time.Hour, start)
	a.Add("a.test", egress.Origin{Entry: "shop"}, netip.MustParseAddr("192.0.2.1"), 0, start)
	for _, bad := range []string{"", ".", "*", "*.test", "a..test", "a.test\x1b[31m", strings.Repeat("a.", 200)} {
		add(bad, "192.0.2.1", time.Minute, start)
	}
	if got := namesAt(&a, "192.0.2.1", start); got != "a.test@shop b.test@ a.test@" {
		t.Errorf("%q", got)
	}
	if got := namesAt(&a, "192.0.2.2", start); got != "" {
		t.Errorf("another address: %q", got)
	}
	add("a.test", "192.0.2.1", time.Second, start) // does not shorten
	for after, want := range map[time.Duration]string{
		0: "a.test@ a.test@shop b.test@", Grace + 30*time.Second: "a.test@ b.test@", Grace + 2*time.Minute: "b.test@", Grace + 2*time.Hour: "",
	} {
		if got := namesAt(&a, "192.0.2.1", start.Add(after)); got != want {
			t.Errorf("after %v: %q, want %q", after, got, want)
		}
	}
	add("long.test", "192.0.2.3", 1000*time.Hour, start)
	if got := namesAt(&a, "192.0.2.3", start.Add(Grace+maxTTL+time.Second)); got != "" {
		t.Errorf("a time to live without a bound: %q", got)
	}
	if a.Forget(); a.Len() != 0 || namesAt(&a, "192.0.2.1", start) != "" {
		t.Error("something is left")
	}
}

// TestAnswersAreBounded: whatever a pod looks up, it keeps no more than its bounds and its share
// of the node, and what it takes is given back. The answer that came last is there.
func TestAnswersAreBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := budget.New(rapid.Int64Range(40, 4000).Draw(t, "node"))
		one, other := Answers{Share: pool.Join()}, Answers{Share: pool.Join()}
		now := start
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			a := rapid.SampledFrom([]*Answers{&one, &other}).Draw(t, "pod")
			base, n := rapid.IntRange(0, 5000).Draw(t, "first"), rapid.IntRange(1, 300).Draw(t, "burst")
			same := rapid.Bool().Draw(t, "one address")
			for i := range n {
				addr := netip.AddrFrom4([4]byte{192, 0, byte((base + i) >> 8), byte(base + i)})
				if same {
					addr = netip.AddrFrom4([4]byte{198, 51, 100, 1})
				}
				host := "h" + strconv.Itoa(base+i) + ".test"
				a.Add(host, egress.Origin{}, addr, time.Minute, now)
				if names := a.Names(nil, addr, now); a.Share.Used() > 0 && (len(names) == 0 || names[0].Host != host) {
					t.Fatalf("%s is not there: %v", host, names)
				}
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 7200).Draw(t, "seconds")) * time.Second)
			sum := 0
			for _, list := range a.at {
				sum += len(list)
				if len(list) > maxNames {
					t.Fatalf("%d names of one address", len(list))
				}
			}
			if sum != a.Len() || a.Len() > maxAnswers || int64(a.Len()) != a.Share.Used() || pool.Used() > pool.Total() {
				t.Fatalf("%d kept, %d counted, %d taken", sum, a.Len(), a.Share.Used())
			}
		}
		one.Forget()
		other.Forget()
		if pool.Used() != 0 {
			t.Fatalf("%d are left", pool.Used())
		}
	})
}

func TestNameServers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	text := "# nameserver 192.0.2.1\nsearch a b\nnameserver 10.96.0.10\nnameserver fd00::a%eth0\nnameserver 127.0.0.53\nnameserver x\nnameserver\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	more := []netip.Addr{netip.MustParseAddr("192.0.2.53")}
	want := []netip.Addr{netip.MustParseAddr("10.96.0.10"), netip.MustParseAddr("fd00::a"), more[0]}
	if got := NameServers(file, more); !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if got := NameServers(file+"x", more); !slices.Equal(got, more) {
		t.Errorf("without the file: %v", got)
	}
}

package scenario

import (
	"errors"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

var allowRow = regexp.MustCompile("(?m)^\\| (`[^`]+`|nothing) \\| `([^`]+)` \\| (`[^`]+`|nothing) \\| (allowed|`EGRESS_DENIED`) \\| .* \\|$")

// TestEgressAllowListPage: every connection of the table of allow-lists in docs/egress.md, with
// the EgressPolicy of the page, has the result that the table gives.
func TestEgressAllowListPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/egress.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	rows := allowRow.FindAllStringSubmatch(string(page), -1)
	if len(blocks) != 2 || !strings.Contains(blocks[1][1], "kind: EgressPolicy") || len(rows) != 10 {
		t.Fatalf("the page has %d files and %d connections", len(blocks), len(rows))
	}
	w := rig.Start(t, lab.Config{YAML: shop + captured("looker", ""), Env: map[string][]string{"ztunnel": {"EGRESS_NAME_SERVERS=" + lanAddr(false).String()}}})
	haveOutside(t, w, rows)
	w.MustApply(blocks[1][1])
	w.Eventually("the policy is there", func() error {
		out, err := w.Ambit("ztunnel-config", "egress", "--node", "node2")
		return errors.Join(err, contains(out, "shop", "looker", "shop/partners (Enforce)"))
	})
	callAsListed(t, w, rows, "allowed")
}

// haveOutside serves, outside of the mesh, what the rows of a page's table call, and the
// names that they look up. A row is: whole, name, address, name in TLS, result.
func haveOutside(t *testing.T, w *rig.World, rows [][]string) {
	t.Helper()
	plain := map[string]bool{}
	names := map[string]netip.Addr{}
	for _, row := range rows {
		at := netip.MustParseAddrPort(row[2])
		addresses(t, w, lab.LAN, at.Addr().String())
		if row[1] != "nothing" {
			names[strings.Trim(row[1], "`")+"."] = at.Addr()
		}
		plain[at.String()] = plain[at.String()] || row[3] == "nothing"
	}
	resolverAt(w, netip.AddrPortFrom(lanAddr(false), 53), func(name string, v6 bool) (netip.Addr, bool) { a, ok := names[name]; return a, ok && !v6 })
	serveOutside(w, plain)
}

// callAsListed has the pod looker make the look-up and the connection of each row, which has
// its result: good, or the reason of a refusal.
func callAsListed(t *testing.T, w *rig.World, rows [][]string, good string) {
	t.Helper()
	for _, row := range rows {
		to := netip.MustParseAddrPort(row[2])
		if name := strings.Trim(row[1], "`"); name != "nothing" {
			if m, err := look(w, looker, lanAddr(false), "udp", ask(name, dns.TypeA)); err != nil || strings.Join(found(m), "") != to.Addr().String() {
				t.Fatalf("%s: %v, %v", name, m, err)
			}
		}
		var err error
		if sni := strings.Trim(row[3], "`"); sni != "nothing" {
			err = tlsTo(w, looker, to, sni)
		} else {
			err = plainTo(w, looker, to)
		}
		if refused := row[4] != good; (err != nil) != refused || refused && !isReset(err) {
			t.Errorf("%s: %v", row[0], err)
		} else if refused {
			w.Logs("node2", "dst.addr="+to.String(), `reason="`+strings.Trim(row[4], "`")+`"`)
		}
	}
}

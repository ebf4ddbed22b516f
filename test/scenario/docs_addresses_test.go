package scenario

import (
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

var lookedUpRow = regexp.MustCompile("(?m)^\\| (`[^`]+`|nothing) \\| `([^`]+)` \\| (`[^`]+`|nothing) \\| (connected|`NOT_IN_REGISTRY`) \\| .* \\|$")

// TestAddressesPage: every connection of the table in docs/addresses.md, with the ServiceEntry
// of the page, has the result that the table gives.
func TestAddressesPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/addresses.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	rows := lookedUpRow.FindAllStringSubmatch(string(page), -1)
	if len(blocks) != 1 || len(rows) != 7 {
		t.Fatalf("the page has %d files and %d connections", len(blocks), len(rows))
	}
	w := rig.Start(t, lab.Config{
		YAML: shop + captured("looker", ""), Args: map[string][]string{lab.Ambitd: {"--mesh-config", meshSettings(t, "REGISTRY_ONLY")}},
		Env: map[string][]string{"ztunnel": {"EGRESS_NAME_SERVERS=" + lanAddr(false).String()}},
	})
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
	w.MustApply(blocks[0][1])
	knows(w, "node2", "shop", "pictures", true)
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
		if refused := row[4] != "connected"; (err != nil) != refused || refused && !isReset(err) {
			t.Errorf("%s: %v", row[0], err)
		} else if refused {
			w.Logs("node2", "dst.addr="+to.String(), `reason="NOT_IN_REGISTRY"`)
		}
	}
}

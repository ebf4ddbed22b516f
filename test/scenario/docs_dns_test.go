package scenario

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

var dnsRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (A|AAAA|TXT) \\| (?:`([^`]+)`|(passed on)|nothing.*) \\|$")

// TestDNSPage: every look-up of docs/dns.md, with the objects of the page, has the answer
// that its table gives; the command and the metrics show it.
func TestDNSPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/dns.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	rows := dnsRow.FindAllStringSubmatch(string(page), -1)
	if len(blocks) != 1 || len(rows) < 10 {
		t.Fatalf("the page has %d files and %d look-ups", len(blocks), len(rows))
	}
	world := rig.Start(t, lab.Config{YAML: shop + captured("looker", "") + rig.PodObject("street", "tower", "node2", "") + "\n---\n" + blocks[0][1]})
	ns := nameServerIn(world, "street", "tower")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		at := w.Pod("street", "tower", v6)
		for _, row := range rows {
			name, kind, answer, passed := row[1], dns.StringToType[row[2]], strings.Fields(row[3]), row[4] != ""
			before := ns.asked(name)
			m, err := look(w, looker, at, "udp", ask(name, kind))
			if err != nil {
				t.Errorf("%s: %v", row[0], err)
				continue
			}
			if asked := ns.asked(name) > before; asked != passed || !passed && (m.Rcode != dns.RcodeSuccess || !slices.Equal(found(m), answer)) {
				t.Errorf("%s: %v (passed on: %v)", row[0], m, asked)
			}
		}
	})
	out, err := world.Ambit("ztunnel-config", "dns", "--node", "node2")
	if err != nil || !regexp.MustCompile(`(?m)^shop +looker +[1-9]\d* +[1-9]\d* +0$`).MatchString(out) {
		t.Errorf("%s%v", out, err)
	}
	for _, name := range regexp.MustCompile("`((?:istio|ztunnel)_dns_[a-z_]+)`").FindAllStringSubmatch(string(page), -1) {
		if name[1] == "istio_dns_upstream_failures_total" {
			continue // there was none
		}
		metric := name[1]
		if strings.HasSuffix(metric, "_seconds") {
			metric += "_count"
		}
		if len(world.Metrics("node2", metric)) == 0 {
			t.Errorf("there is no metric %s", metric)
		}
	}
}

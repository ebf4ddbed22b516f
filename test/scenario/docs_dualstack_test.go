package scenario

import (
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

var dualStackRow = regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (?:both|IPv4) \\| (.*) \\| (.*) \\| (.*) \\|$")

// TestDualStackPage: in a mesh of each kind, every Service of docs/dual-stack.md is reached
// at the addresses that its table gives, and at no others.
func TestDualStackPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/dual-stack.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	rows := dualStackRow.FindAllStringSubmatch(string(page), -1)
	if len(blocks) != 1 || len(rows) != 4 {
		t.Fatalf("the page has %d files and %d Services", len(blocks), len(rows))
	}
	for i, family := range []string{"dual", "ipv4", "ipv6"} {
		t.Run(family, func(t *testing.T) {
			w := rig.Start(t, lab.Config{IPFamily: family, YAML: blocks[0][1]})
			s, err := w.Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			client := lab.InPod("shop", "client")
			for _, row := range rows {
				var reached []string
				for j := range s.Services {
					if s.Services[j].Name != row[1] {
						continue
					}
					for _, ip := range s.Services[j].IPs {
						to := netip.AddrPortFrom(netip.MustParseAddr(ip), 80)
						name := map[bool]string{true: "IPv4", false: "IPv6"}[to.Addr().Is4()]
						get := func() error {
							_, err := w.Run(t.Context(), client, rig.Bin("echo"), "get", "-url", "http://"+to.String()+"/usr/lib/os-release")
							return err
						}
						if !strings.Contains(row[2+i], name) {
							if get() == nil {
								t.Errorf("Service %s is reached at %s", row[1], to)
							}
							continue
						}
						w.Eventually("Service "+row[1]+" is reached at "+to.String(), get)
						reached = append(reached, name)
					}
				}
				slices.Sort(reached)
				if got := strings.Join(reached, ", "); got != strings.Trim(row[2+i], "–") {
					t.Errorf("Service %s is reached by %q, and the page has %q", row[1], got, row[2+i])
				}
			}
		})
	}
}

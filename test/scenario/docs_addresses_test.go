package scenario

import (
	"os"
	"regexp"
	"testing"

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
	haveOutside(t, w, rows)
	w.MustApply(blocks[0][1])
	knows(w, "node2", "shop", "pictures", true)
	callAsListed(t, w, rows, "connected")
}

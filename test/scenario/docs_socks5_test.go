package scenario

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestSOCKS5Page: every command of docs/socks5.md is answered in the shop, and each row of
// its table has the code that the page gives.
func TestSOCKS5Page(t *testing.T) {
	page, err := os.ReadFile("../../docs/socks5.md")
	if err != nil {
		t.Fatal(err)
	}
	yaml := exampleShop(t, "istio.io/dataplane-mode: ambient")
	w := rig.Start(t, lab.Config{YAML: yaml, Env: socksEnv})
	client := lab.InPod("shop", "client")
	w.BecomesAnswered(client, netip.AddrPortFrom(w.Service("shop", "web", false), 80))
	commands := regexp.MustCompile(`(?m)^    (curl [^\n]+)$`).FindAllStringSubmatch(string(page), -1)
	for _, c := range commands {
		argv := append(strings.Fields(c[1]), "--noproxy", "", "-sS", "--max-time", "20")
		if out, err := w.Run(t.Context(), client, argv...); err != nil || !strings.Contains(out, "web") {
			t.Errorf("%s: %v\n%s", c[1], err, out)
		}
	}
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (\\d) \\|").FindAllStringSubmatch(string(page), -1)
	for _, r := range rows {
		to := strings.Replace(r[1], "pod/web", w.Pod("shop", "web", false).String(), 1)
		if got, err := socksAsk(w, client, to); err != nil || fmt.Sprint(got) != r[2] {
			t.Errorf("%s: code %d, %v, the page has %s", r[1], got, err, r[2])
		}
	}
	if len(commands) != 3 || len(rows) != 5 {
		t.Errorf("%d commands and %d rows of the page were tried", len(commands), len(rows))
	}
}

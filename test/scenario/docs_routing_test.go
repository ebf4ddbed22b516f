package scenario

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

var (
	routingBlock = regexp.MustCompile("(?s)```yaml\n(.*?)```\n(.*?)(?:\n## |$)")
	answerRow    = regexp.MustCompile("(?m)^\\| `GET (\\S+)` \\| (?:`([^`]+): ([^`]+)`|–) \\|$")
)

// TestRoutingPage: the examples of docs/routing.md, applied to the shop of the quick start,
// do what the tables behind them say.
func TestRoutingPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/routing.md")
	if err != nil {
		t.Fatal(err)
	}
	yaml := exampleShop(t, "istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint")
	w := rig.Start(t, lab.Config{YAML: yaml + managed + rig.NamespaceObject("depot", true) + rig.ServerObject("depot", "stock", "node1", "app: stock")})
	rows := 0
	for _, m := range routingBlock.FindAllStringSubmatch(string(page), -1) {
		commands, answers := whyRow.FindAllStringSubmatch(m[2], -1), answerRow.FindAllStringSubmatch(m[2], -1)
		if len(commands)+len(answers) == 0 {
			continue // the first one is what a route looks like
		}
		w.MustApply(m[1])
		for _, r := range commands {
			rows++
			w.Eventually(r[1], func() error {
				words := strings.Fields(strings.TrimPrefix(r[1], "ambit "))
				out, err := w.Ambit(words[0], words[1:]...)
				code := 0
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					code = exit.ExitCode()
				} else if err != nil {
					return err
				}
				if fmt.Sprint(code) != r[2] || !strings.Contains(out, r[3]) {
					return fmt.Errorf("code %d\n%s", code, out)
				}
				return nil
			})
		}
		for _, r := range answers {
			rows++
			w.Eventually(r[0], func() error {
				c, err := w.Dial(t.Context(), lab.InPod("shop", "client"), "tcp", netip.AddrPortFrom(w.Service("shop", "web", false), 80).String())
				if err != nil {
					return err
				}
				defer c.Close() //nolint:errcheck // the answer has come
				resp, _, err := converse(c, "GET "+r[1]+" HTTP/1.1\nHost: web")
				switch {
				case err != nil:
					return err
				case resp.StatusCode != http.StatusOK:
					return errors.New(resp.Status)
				case r[2] == "" && resp.Header.Get("Set-Cookie")+resp.Header.Get("X-Basket") == "":
					return nil
				case r[2] != "" && regexp.MustCompile("^"+strings.ReplaceAll(regexp.QuoteMeta(r[3]), "VALUE", `[\w-]{22}`)+"$").MatchString(resp.Header.Get(r[2])):
					return nil
				}
				return fmt.Errorf("the answer has %v", resp.Header)
			})
		}
		for _, kind := range []string{"HTTPRoute", "TLSRoute", "TCPRoute"} {
			for _, name := range regexp.MustCompile(`kind: `+kind+`\nmetadata: \{name: ([\w-]+), namespace: shop`).FindAllStringSubmatch(m[1], -1) {
				w.MustDelete(kind, "shop", name[1])
			}
		}
	}
	if rows != 13 {
		t.Errorf("%d rows of the page were tried", rows)
	}
}

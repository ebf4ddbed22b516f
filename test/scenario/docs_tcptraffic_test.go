package scenario

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestTCPTrafficPage: the examples of docs/tcp-traffic.md, applied to the shop of the quick
// start, do what the tables behind them say.
func TestTCPTrafficPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/tcp-traffic.md")
	if err != nil {
		t.Fatal(err)
	}
	w := rig.Start(t, lab.Config{YAML: exampleShop(t, "istio.io/dataplane-mode: ambient")})
	for _, m := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1) {
		w.MustApply(m[1])
	}
	rows := whyRow.FindAllStringSubmatch(string(page), -1)
	for _, r := range rows {
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
			if fmt.Sprint(code) != r[2] || !strings.Contains(strings.Join(strings.Fields(out), " "), strings.TrimSpace(r[3])) {
				return fmt.Errorf("code %d\n%s", code, out)
			}
			return nil
		})
	}
	if len(rows) != 10 {
		t.Errorf("%d rows of the page were tried", len(rows))
	}
	for _, words := range [][]string{{"ztunnel-config", "traffic", "--node", "node2"}, {"describe", "service", "web.shop"}, {"status", "-n", "shop"}} {
		w.Eventually(strings.Join(words, " "), func() error {
			out, err := w.Ambit(words[0], words[1:]...)
			return errors.Join(err, contains(out, "DestinationRule", "web"), contains(out, "RateLimit", "web"))
		})
		if command := "`ambit " + strings.Join(words, " ") + "`"; !strings.Contains(string(page), command) {
			t.Errorf("the page does not have %s", command)
		}
	}
}

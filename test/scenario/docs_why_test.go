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

var (
	whyExample = regexp.MustCompile("(?m)^    (ambit why [^\n]+)\n\n```\n((?s:.*?))```")
	whyRow     = regexp.MustCompile("(?m)^\\| `(ambit why [^`]+)` \\| (\\d) \\| `([^`]*)` \\|$")
	address    = regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+\b`)
	podSuffix  = regexp.MustCompile(`waypoint-[0-9a-f]+-0`)
	spaces     = regexp.MustCompile(` +`)
)

// TestWhyPage: every command of docs/why.md, in the shop of the quick start, ends with
// the code and has the answer that the page gives.
func TestWhyPage(t *testing.T) {
	page, err := os.ReadFile("../../docs/why.md")
	if err != nil {
		t.Fatal(err)
	}
	yaml := exampleShop(t, "istio.io/dataplane-mode: ambient, istio.io/use-waypoint: waypoint")
	objects := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(string(page), -1)
	if len(objects) != 1 {
		t.Fatalf("the page has %d files", len(objects))
	}
	w := rig.Start(t, lab.Config{YAML: yaml + managed + "\n---\n" + objects[0][1]})
	run := func(command string) (out string, code int) {
		words := strings.Fields(strings.TrimPrefix(command, "ambit "))
		out, err := w.Ambit(words[0], words[1:]...)
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return out + err.Error(), exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		return out, 0
	}
	// The lab of a test has another name, and may have other addresses.
	normal := func(s string) string {
		s = strings.ReplaceAll(s, " --state-dir "+w.StateDir(), "")
		return spaces.ReplaceAllString(podSuffix.ReplaceAllString(address.ReplaceAllString(s, "ADDRESS"), "waypoint-POD"), " ")
	}
	examples, rows := whyExample.FindAllStringSubmatch(string(page), -1), whyRow.FindAllStringSubmatch(string(page), -1)
	for _, e := range examples {
		w.Eventually(e[1], func() error {
			out, _ := run(e[1])
			if got, want := normal(out), normal(e[2]); !strings.Contains(got, want) {
				return fmt.Errorf("got\n%s\nwant\n%s", got, want)
			}
			return nil
		})
	}
	for _, r := range rows {
		w.Eventually(r[1], func() error {
			if out, code := run(r[1]); fmt.Sprint(code) != r[2] || !strings.Contains(out, r[3]) {
				return fmt.Errorf("code %d\n%s", code, out)
			}
			return nil
		})
	}
	if len(examples) != 2 || len(rows) != 12 {
		t.Errorf("%d examples and %d rows of the page were tried", len(examples), len(rows))
	}
}

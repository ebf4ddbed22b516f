package dashboard

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/charts"
)

// base is where runbooks are published: the pages of the repository.
const base = "https://github.com/ambit-mesh/ambit/blob/main/docs/"

// TestAlerts: every alert has a severity and a description, and links to a section of the
// pages that exists.
func TestAlerts(t *testing.T) {
	text, err := charts.FS.ReadFile(charts.Rules)
	if err != nil {
		t.Fatal(err)
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr         string
				Labels, Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(text, &rules); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if seen[r.Alert] || !strings.HasPrefix(r.Alert, "Ambit") || r.Expr == "" {
				t.Errorf("alert %q", r.Alert)
			}
			seen[r.Alert] = true
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("%s has the severity %q", r.Alert, s)
			}
			for _, name := range []string{"summary", "description"} {
				if !strings.HasSuffix(strings.TrimSpace(r.Annotations[name]), ".") {
					t.Errorf("%s: %s is no sentence: %q", r.Alert, name, r.Annotations[name])
				}
			}
			link, ours := strings.CutPrefix(r.Annotations["runbook_url"], base)
			file, anchor, ok := strings.Cut(link, "#")
			if !ours || !ok {
				t.Errorf("%s links to %q", r.Alert, r.Annotations["runbook_url"])
				continue
			}
			if !anchors(t, file)[anchor] {
				t.Errorf("%s links to %s, and docs/%s has no such section", r.Alert, anchor, file)
			}
		}
	}
	if len(seen) < 20 {
		t.Errorf("%d alerts", len(seen))
	}
	// The page lists them all.
	page, err := os.ReadFile("../../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	for name := range seen {
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/observability.md does not list %s", name)
		}
	}
	for _, m := range regexp.MustCompile("`(Ambit[A-Z][A-Za-z]+)`").FindAllStringSubmatch(string(page), -1) {
		if !seen[m[1]] {
			t.Errorf("docs/observability.md lists %s, and there is no such alert", m[1])
		}
	}
}

var (
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	dropped = regexp.MustCompile(`[^a-z0-9 _-]`)
)

// anchors returns the anchors of a page, as GitHub makes them of headings.
func anchors(t *testing.T, page string) map[string]bool {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../../../docs", page))
	if err != nil {
		t.Error(err)
	}
	out := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(string(b), -1) {
		out[strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return out
}

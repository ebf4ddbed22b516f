package archtest

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// TestReasonsAreDocumented: an operator who greps the documentation for a
// reason from a log finds it.
func TestReasonsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reason.All() {
		if row := "| `" + r.String() + "` | `" + r.Flag() + "` |"; !strings.Contains(string(b), row) {
			t.Errorf("docs/operations.md has no row that begins with %s", row)
		}
	}
}

// TestAnswersAreDocumented: what a waypoint answers for each reason is in the table.
func TestAnswersAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reason.All() {
		h := r.HTTP()
		status := "none"
		if h.Status != 0 {
			status = strconv.Itoa(h.Status)
		}
		start, found := fmt.Sprintf("| %s | `%s` |", status, h.Flag), r == reason.OK
		for line := range strings.Lines(string(b)) {
			found = found || strings.HasPrefix(line, start) && strings.Contains(line, "`"+r.String()+"`")
		}
		if !found {
			t.Errorf("docs/operations.md has no row that begins with %s and names %s", start, r)
		}
	}
}

// TestReasonsHaveANextStep: the page for those in trouble leaves none out.
func TestReasonsHaveANextStep(t *testing.T) {
	b, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range reason.All() {
		if r != reason.OK && !strings.Contains(string(b), "`"+r.String()+"`") {
			t.Errorf("docs/troubleshooting.md does not say what to do about %s", r)
		}
	}
}

// TestModulesAreJustified: every direct dependency has its line.
func TestModulesAreJustified(t *testing.T) {
	doc, err := os.ReadFile("../../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mod)) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(f) < 2 || !strings.Contains(f[0], "/") || strings.Contains(line, "// indirect") || f[0] == "module" {
			continue
		}
		if !strings.Contains(string(doc), f[0]) {
			t.Errorf("docs/dependencies.md does not say what %s is for", f[0])
		}
	}
}

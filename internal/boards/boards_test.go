package boards

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const shipped = "../../charts/observability/files/boards"

// TestFiles: chart and page have what the code gives (make generate).
func TestFiles(t *testing.T) {
	files, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	have, err := filepath.Glob(filepath.Join(shipped, "*"))
	if err != nil || len(have) != len(files) {
		t.Errorf("%d files, want %d: %v", len(have), len(files), err)
	}
	for name, want := range files {
		if b, err := os.ReadFile(filepath.Join(shipped, name)); err != nil || !bytes.Equal(b, want) {
			t.Errorf("%s is not up to date: run make generate; %v", name, err)
		}
	}
	want, err := Page()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile("../../docs/reference/metrics.md"); err != nil || string(b) != want {
		t.Errorf("docs/reference/metrics.md is not up to date: run make generate; %v", err)
	}
}

// parsed is what a test reads of a board.
type parsed struct {
	UID, Title string
	Panels     []struct {
		ID          int
		Type, Title string
		GridPos     struct{ X, Y, W, H int }
		Datasource  struct{ UID string }
		Targets     []struct {
			Expr       string
			Datasource struct{ UID string }
		}
	}
	Templating struct {
		List []struct{ Name, Type string }
	}
}

// TestShape: identifiers are unique, panels do not overlap, every query has the data source
// that the user chose, and every variable that a query names exists.
func TestShape(t *testing.T) {
	files, err := Files()
	if err != nil {
		t.Fatal(err)
	}
	uids := map[string]bool{}
	for name, text := range files {
		var b parsed
		if err := json.Unmarshal(text, &b); err != nil {
			t.Fatal(name, err)
		}
		if uids[b.UID] || b.UID+".json" != name {
			t.Errorf("%s has the uid %q", name, b.UID)
		}
		uids[b.UID] = true
		variables := []string{"datasource", "__rate_interval"}
		for _, v := range b.Templating.List {
			variables = append(variables, v.Name)
		}
		ids, cells := map[int]bool{}, map[[2]int]string{}
		for _, p := range b.Panels {
			if ids[p.ID] {
				t.Errorf("%s: two panels have the id %d", name, p.ID)
			}
			ids[p.ID] = true
			for x := range p.GridPos.W {
				for y := range p.GridPos.H {
					at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
					if at[0] >= grid || cells[at] != "" {
						t.Fatalf("%s: %q lies on %q at %v", name, p.Title, cells[at], at)
					}
					cells[at] = p.Title
				}
			}
			if p.Type == "row" {
				continue
			}
			if len(p.Targets) == 0 || p.Datasource.UID != source {
				t.Errorf("%s: %q has %d queries of %q", name, p.Title, len(p.Targets), p.Datasource.UID)
			}
			for _, q := range p.Targets {
				if q.Datasource.UID != source || q.Expr == "" {
					t.Errorf("%s: %q: %+v", name, p.Title, q)
				}
				for _, part := range strings.Split(q.Expr, "$")[1:] {
					end := strings.IndexFunc(part, func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') })
					if !slices.Contains(variables, part[:end]) {
						t.Errorf("%s: %q names the variable %q", name, p.Title, part[:end])
					}
				}
			}
		}
	}
	if len(uids) != 5 {
		t.Errorf("%d boards", len(uids))
	}
}

// TestMetrics: a metric is listed once, and is of a program.
func TestMetrics(t *testing.T) {
	list, err := Metrics()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range list {
		if seen[m.Name] || len(m.Programs) == 0 || m.Help == "" || !slices.Contains([]string{"counter", "gauge", "histogram"}, m.Type) {
			t.Errorf("%+v", m)
		}
		seen[m.Name] = true
		for _, p := range m.Programs {
			if !slices.Contains([]string{"all", "ambitd", "ambit-cni", "ztunnel", "waypoint"}, p) {
				t.Errorf("%s is of %q", m.Name, p)
			}
		}
	}
}

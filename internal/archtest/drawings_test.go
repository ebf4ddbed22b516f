package archtest

import (
	"html"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// labels are the quoted texts of a drawing.
var labels = regexp.MustCompile(`"([^"]+)"`)

// TestDrawings: each drawing has been made of its text (make drawings), and a page shows it.
func TestDrawings(t *testing.T) {
	texts, err := filepath.Glob("../../docs/drawings/*.d2")
	if err != nil || len(texts) == 0 {
		t.Fatalf("%d drawings: %v", len(texts), err)
	}
	pages := readPages(t)
	for _, text := range texts {
		name := strings.TrimSuffix(filepath.Base(text), ".d2") + ".svg"
		source, err := os.ReadFile(text)
		if err != nil {
			t.Fatal(err)
		}
		made, err := os.ReadFile(filepath.Join(filepath.Dir(text), name))
		if err != nil {
			t.Errorf("%v: run make drawings", err)
			continue
		}
		drawn := html.UnescapeString(string(made))
		for _, m := range labels.FindAllStringSubmatch(string(source), -1) {
			for _, line := range strings.Split(m[1], `\n`) {
				if !strings.Contains(drawn, line) {
					t.Errorf("%s does not have %q: run make drawings", name, line)
				}
			}
		}
		if !strings.Contains(pages, "drawings/"+name) {
			t.Errorf("no page shows %s", name)
		}
	}
}

// readPages returns the text of all pages.
func readPages(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, pattern := range []string{"../../*.md", "../../docs/*.md"} {
		files, _ := filepath.Glob(pattern)
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
	}
	return all.String()
}

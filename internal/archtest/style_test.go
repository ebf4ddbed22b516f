package archtest

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

const stylePage = "docs/contributing/style.md"

var phraseRow = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| ([^|]+) \\|$")

// TestPhrases: no Go file, page or chart has a phrase that the style page
// replaces.
func TestPhrases(t *testing.T) {
	page, err := os.ReadFile("../../" + stylePage)
	if err != nil {
		t.Fatal(err)
	}
	instead := map[string]string{}
	var phrases []string
	for _, m := range phraseRow.FindAllStringSubmatch(string(page), -1) {
		instead[m[1]] = m[2]
		// A phrase may be broken over two lines of a comment.
		phrases = append(phrases, strings.ReplaceAll(regexp.QuoteMeta(m[1]), " ", `\s+(?://\s+)?`))
	}
	if len(phrases) < 5 {
		t.Fatalf("%s has %d phrases: is its table in order?", stylePage, len(phrases))
	}
	pattern := regexp.MustCompile(`(?i)\b(?:` + strings.Join(phrases, "|") + `)\b`)
	for _, file := range texts(t) {
		b, err := os.ReadFile("../../" + file)
		if os.IsNotExist(err) {
			continue // removed, and not committed yet
		} else if err != nil {
			t.Fatal(err)
		}
		for _, at := range pattern.FindAllIndex(b, -1) {
			words := strings.Fields(strings.ToLower(strings.ReplaceAll(string(b[at[0]:at[1]]), "//", "")))
			phrase := strings.Join(words, " ")
			line := 1 + strings.Count(string(b[:at[0]]), "\n")
			t.Errorf("%s:%d: %q: write: %s", file, line, phrase, instead[phrase])
		}
	}
}

// texts returns the files that people read, without generated ones, as paths
// from the root of the repository.
func texts(t *testing.T) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "*.go", "*.md", "charts")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	var files []string
	for _, f := range strings.Fields(string(out)) {
		if f != stylePage && !strings.HasSuffix(f, ".pb.go") && !strings.Contains(f, "/crds/") {
			files = append(files, f)
		}
	}
	if len(files) < 100 {
		t.Fatalf("git lists %d files", len(files))
	}
	return files
}

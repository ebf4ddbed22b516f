package archtest

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

var (
	testName  = regexp.MustCompile("`(Test[A-Za-z0-9_]+)`")
	testFuncs = regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]+)\(`)
)

// TestSecurityIsShown: every test that docs/security.md names exists, so that
// no statement there is shown by a test that was renamed or removed.
func TestSecurityIsShown(t *testing.T) {
	b, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	named := testName.FindAllStringSubmatch(string(b), -1)
	if len(named) < 50 {
		t.Errorf("docs/security.md names %d tests: is this the page?", len(named))
	}
	have := testsOfTheRepository(t)
	for _, m := range named {
		if !have[m[1]] {
			t.Errorf("docs/security.md names %s, and there is no such test", m[1])
		}
	}
}

// testsOfTheRepository are the names of all tests, whatever their build tags.
func testsOfTheRepository(t *testing.T) map[string]bool {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "--cached", "--others", "--exclude-standard", "*_test.go")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	have := map[string]bool{}
	for _, file := range strings.Fields(string(out)) {
		b, err := os.ReadFile("../../" + file)
		if os.IsNotExist(err) {
			continue // removed, and not committed yet
		} else if err != nil {
			t.Fatal(err)
		}
		for _, m := range testFuncs.FindAllStringSubmatch(string(b), -1) {
			have[m[1]] = true
		}
	}
	return have
}

// longest is how many words a sentence of the threat model has at most: it is
// read by people whose English is second, and in a hurry.
const longest = 25

// TestSecurityIsPlain: sentences of the security pages are short.
func TestSecurityIsPlain(t *testing.T) {
	for _, page := range []string{"../../docs/security.md", "../../SECURITY.md"} {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sentences(string(b)) {
			if n := len(strings.Fields(s)); n > longest {
				t.Errorf("%s: a sentence of %d words: %s", page, n, s)
			}
		}
	}
}

// sentences splits the paragraphs, items and cells of a page.
func sentences(page string) []string {
	blocks := strings.Split(page, "```")
	var text strings.Builder
	for i := 0; i < len(blocks); i += 2 { // the others are code
		text.WriteString(blocks[i])
	}
	s := regexp.MustCompile(`(?m)^(#|-|\d+\.|\|)`).ReplaceAllString(text.String(), "\n\n$1")
	s = strings.ReplaceAll(s, "|", "\n\n")
	var out []string
	for _, par := range regexp.MustCompile(`\n\s*\n`).Split(s, -1) {
		out = append(out, regexp.MustCompile(`[.:;?!]\s`).Split(strings.Join(strings.Fields(par), " "), -1)...)
	}
	return out
}

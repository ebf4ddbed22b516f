package archtest

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Bounds of a file and of a package, in lines. Tests and generated code do not count for
// the package: what a reader has to hold in mind is its own code.
const (
	maxFile    = 600
	maxPackage = 3000
)

// TestSizes: a file and a package stay small enough to be read as a whole.
func TestSizes(t *testing.T) {
	lines := map[string]int{}
	for _, root := range []string{"internal", "cmd", "test", "build", "charts"} {
		err := filepath.WalkDir("../../"+root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, ".pb.go") {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			path = strings.TrimPrefix(path, "../../")
			n := bytes.Count(b, []byte("\n"))
			if n > maxFile {
				t.Errorf("%s has %d lines, more than %d: divide it", path, n, maxFile)
			}
			if !strings.HasSuffix(path, "_test.go") {
				lines[filepath.Dir(path)] += n
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for dir, n := range lines {
		if n > maxPackage {
			t.Errorf("package %s has %d lines, more than %d: divide it", dir, n, maxPackage)
		}
	}
}

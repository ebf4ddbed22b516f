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

// larger are packages that are to be divided, and what they may have until then.
var larger = map[string]int{
	"internal/lab": 6050,
}

// exceptions are files that are longer than a file may be.
var exceptions = map[string]int{"internal/gateway/gateway_test.go": 640}

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
			if n > max(maxFile, exceptions[path]) {
				t.Errorf("%s has %d lines, more than %d: divide it", path, n, max(maxFile, exceptions[path]))
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
		if n > max(maxPackage, larger[dir]) {
			t.Errorf("package %s has %d lines, more than %d: divide it", dir, n, max(maxPackage, larger[dir]))
		}
	}
	for dir := range larger {
		if lines[dir] <= maxPackage {
			t.Errorf("package %s has %d lines: take it from the list of larger ones", dir, lines[dir])
		}
	}
}

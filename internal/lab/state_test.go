package lab

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestState(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := claim(Dirs{dir}, Config{Name: "x"}); err == nil || !strings.Contains(err.Error(), "neither empty") {
		t.Errorf("claimed a directory of somebody else: %v", err)
	}
	if err := Down(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "precious")); err != nil {
		t.Error(err)
	}
}

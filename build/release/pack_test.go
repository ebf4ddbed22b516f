package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestNotes(t *testing.T) {
	const log = "# Changelog\n\n## Unreleased\n\nnext\n\n## v1.2.0 (2026-01-02)\n\n### Added\n\n- a\n\n## v1.1.0\n\n## v1.0.0\n\n- first\n"
	for version, want := range map[string]string{
		"v1.2.0": "### Added\n\n- a\n", "v1.0.0": "- first\n", "v1.1.0": "", "v1.2": "", "v2.0.0": "",
	} {
		got, err := notesOf(log, version)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v", version, got, err)
		}
	}
}

func TestVersions(t *testing.T) {
	for version, want := range map[string]bool{
		"v1.2.3": true, "v0.1.0": true, "v1.2.3-rc.1": true, "1.2.3": false, "v1.2": false, "v01.2.3": false,
		"v1.2.3+build": false, "v1.2.3-": false, "v1.2.3\x20": false, "latest": false, "": false,
	} {
		if versions.MatchString(version) != want {
			t.Errorf("%q: want %v", version, want)
		}
	}
}

// The same programs give the same archive, at any time and from any place, and
// its program runs.
func TestArchive(t *testing.T) {
	var packed [2][]byte
	for i := range packed {
		dir := t.TempDir()
		program := filepath.Join(dir, "program")
		if err := os.WriteFile(program, []byte("#!/bin/sh\necho runs\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, "a.tar.gz")
		if err := writeArchive(to, "ambit_v1", []file{{"hello", program, 0o755}}); err != nil {
			t.Fatal(err)
		}
		var err error
		if packed[i], err = os.ReadFile(to); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("tar", "-xzf", to, "-C", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if out, err := exec.Command(filepath.Join(dir, "ambit_v1", "hello")).Output(); err != nil || string(out) != "runs\n" {
			t.Errorf("%q, %v", out, err)
		}
	}
	if !bytes.Equal(packed[0], packed[1]) {
		t.Error("two archives of one program differ")
	}
}

// What `sha256sum -c` says of the checksums.
func TestSums(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "charts"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "charts/b"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := writeSums(dir); err != nil {
		t.Fatal(err)
	}
	check := func() (string, error) {
		cmd := exec.Command("sha256sum", "-c", sumsName)
		cmd.Dir = dir
		out, err := cmd.Output()
		return string(out), err
	}
	if out, err := check(); err != nil || out != "a: OK\ncharts/b: OK\n" {
		t.Errorf("%q, %v", out, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := check(); err == nil {
		t.Errorf("another file passes: %q", out)
	}
}

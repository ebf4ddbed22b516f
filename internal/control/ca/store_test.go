package ca_test

import (
	"bufio"
	"crypto/elliptic"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

func TestStateDirectory(t *testing.T) {
	dir := t.TempDir()
	a := open(t, ca.Config{StateDir: dir})
	if _, err := ca.Open(ca.Config{StateDir: dir, TrustDomain: trustDomain}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("two authorities on one directory: %v", err)
	}
	info, err := os.Stat(filepath.Join(dir, "ca-state.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	first, _ := a.Bundle()
	_ = a.Close()
	_ = a.Close()
	// What a crash in the middle of a write leaves.
	put(t, dir, ".ca-state.json.tmp", "{\"half")
	if err := os.Remove(filepath.Join(dir, "root-cert.pem")); err != nil {
		t.Fatal(err)
	}
	a = open(t, ca.Config{StateDir: dir})
	if again, _ := a.Bundle(); string(again) != string(first) {
		t.Error("another root after a restart")
	}
	if text, err := os.ReadFile(filepath.Join(dir, "root-cert.pem")); err != nil || string(text) != string(first) {
		t.Errorf("root-cert.pem: %v", err)
	}
	if err := a.StartRotation(); err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
	for _, broken := range []string{"", "{", "{}", `{"version":1}`, `{"version":99}`, `{"version":1,"current":{"signerID":"x","cert":"x","key":"x"}}`} {
		put(t, dir, "ca-state.json", broken)
		if a, err := ca.Open(ca.Config{StateDir: dir, TrustDomain: trustDomain}); err == nil {
			_ = a.Close()
			t.Errorf("began anew over the state %q", broken)
		}
	}
}

// TestKill kills a process -9 that rotates and signs as fast as it can. What
// it has published before is found again by the next one, whole.
func TestKill(t *testing.T) {
	if dir := os.Getenv("AMBIT_TEST_KILL_DIR"); dir != "" {
		victim(t, dir)
		return
	}
	dir := t.TempDir()
	for round := range 15 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "AMBIT_TEST_KILL_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The victim says which signer each step begins with.
		lines := bufio.NewScanner(out)
		last := ""
		for range 1 + mathrand.IntN(40) {
			if !lines.Scan() {
				t.Fatalf("round %d: the victim ended by itself", round)
			}
			last = lines.Text()
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for lines.Scan() {
			last = lines.Text()
		}
		_ = cmd.Wait()
		a := open(t, ca.Config{StateDir: dir})
		if _, err := a.Sign(id("a"), csr(t, ecKey(t, elliptic.P256())), 0); err != nil {
			t.Errorf("round %d: %v", round, err)
		}
		bundle, _ := a.Bundle()
		file, err := os.ReadFile(filepath.Join(dir, "root-cert.pem"))
		if err != nil || string(file) != string(bundle) {
			t.Errorf("round %d: root-cert.pem is not the bundle: %v", round, err)
		}
		// One step may have happened after the last word; the signer of
		// before that is then at least still trusted.
		known := false
		roots, err := mtls.ParseCertificates(bundle)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range roots {
			known = known || last == "" || strings.Contains(last, r.Subject.CommonName)
		}
		if !known {
			t.Errorf("round %d: %q is forgotten", round, last)
		}
		_ = a.Close()
	}
}

func victim(t *testing.T, dir string) {
	a := open(t, ca.Config{StateDir: dir})
	key := ecKey(t, elliptic.P256())
	for {
		fmt.Println(a.Status().Signer)
		if a.Status().Stage == ca.Steady {
			if err := a.StartRotation(); err != nil {
				t.Fatal(err)
			}
		} else if err := a.Hurry(); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Sign(id("a"), csr(t, key), 0); err != nil {
			t.Fatal(err)
		}
	}
}

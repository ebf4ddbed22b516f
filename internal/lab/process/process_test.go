package process

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestExpand(t *testing.T) {
	env := map[string]string{"A": "x", "B": ""}
	for in, want := range map[string]string{
		"$(A)": "x", "a$(A)b$(A)": "axbx", "$(B)": "", "$(C)": "$(C)", "$$(A)": "$(A)", "$": "$", "$(A": "$(A", "$A": "$A", "$(": "$(",
	} {
		if got := Expand(in, env); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// TestLogBounded: a program that prints without end fills two files, no more.
func TestLogBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.log")
	l, err := OpenLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	chunk := bytes.Repeat([]byte("x"), maxLog/4)
	for i := range 20 {
		if n, err := l.Write(chunk); n != len(chunk) || err != nil {
			t.Fatal(i, n, err)
		}
	}
	if _, err := l.Write([]byte("the end")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, path + ".1"} {
		if st, err := os.Stat(p); err != nil || st.Size() > maxLog {
			t.Errorf("%s: %v, %v", p, st, err)
		}
	}
	if got := Tail(path, 7); got != "the end" {
		t.Errorf("tail: %q", got)
	}
}

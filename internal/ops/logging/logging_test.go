package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
)

func TestPlain(t *testing.T) {
	var out bytes.Buffer
	l, err := New(&out, Plain, "info")
	if err != nil {
		t.Fatal(err)
	}
	l.Logger("access").With("src.workload", "a b").Info("connection complete",
		"src.addr", netip.MustParseAddrPort("10.0.0.1:80"), "bytes_sent", 12, slog.Group("dst", "x", true), "error", errors.New("line\nbreak"))
	parts := strings.Split(out.String(), "\t")
	if len(parts) != 5 || parts[1] != "info" || parts[2] != "access" || parts[3] != "connection complete" {
		t.Fatalf("%q", parts)
	}
	if want := `src.workload="a b" src.addr=10.0.0.1:80 bytes_sent=12 dst.x=true error="line\nbreak"` + "\n"; parts[4] != want {
		t.Fatalf("got  %s\nwant %s", parts[4], want)
	}
}

func TestJSON(t *testing.T) {
	var out bytes.Buffer
	l, _ := New(&out, JSON, "")
	l.Logger("xds").Warn("bad\x01thing", "n", 3, "err", errors.New(`quote "`), "addr", netip.MustParseAddr("::1"))
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	if got["level"] != "warn" || got["scope"] != "xds" || got["n"] != 3.0 || got["err"] != `quote "` || got["addr"] != "::1" {
		t.Fatalf("%v", got)
	}
}

func TestLevelsChangeWhileRunning(t *testing.T) {
	var out bytes.Buffer
	l, _ := New(&out, Plain, "warn")
	access, xds := l.Logger("access"), l.Logger("xds")
	access.Info("hidden")
	if err := l.Levels.Set("access=debug"); err != nil {
		t.Fatal(err)
	}
	access.Debug("seen")
	xds.Info("hidden")
	if err := l.Levels.Set("info,access=loud"); err == nil {
		t.Fatal("a level that does not exist was taken")
	}
	xds.Info("hidden: the whole list was refused")
	if got := l.Levels.String(); got != "warn,access=debug" {
		t.Fatalf("levels are %q", got)
	}
	l.Levels.Reset()
	access.Info("hidden")
	if got := strings.Count(out.String(), "\n"); got != 1 || !strings.Contains(out.String(), "seen") {
		t.Fatalf("%s", out.String())
	}
	if err := l.Levels.Set("off"); err != nil {
		t.Fatal(err)
	}
	xds.Error("hidden")
	if strings.Contains(out.String(), "hidden") {
		t.Fatalf("%s", out.String())
	}
}

func BenchmarkPlain(b *testing.B) {
	l, _ := New(discard{}, Plain, "info")
	log := l.Logger("access")
	addr := netip.MustParseAddrPort("10.0.0.1:80")
	b.ReportAllocs()
	for b.Loop() {
		log.LogAttrs(b.Context(), slog.LevelInfo, "connection complete", slog.Any("src.addr", addr), slog.String("src.workload", "client"), slog.Int("bytes_sent", 4))
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

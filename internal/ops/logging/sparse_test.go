package logging

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestSparse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		log := Sparse(slog.New(slog.NewTextHandler(&out, nil)), time.Second, 3).With("who", "me")
		lines := func(want int, last string) {
			t.Helper()
			got := strings.Split(strings.TrimSpace(out.String()), "\n")
			out.Reset()
			if len(got) != want || !strings.Contains(got[len(got)-1], last) {
				t.Errorf("%d lines, not %d with %q: %q", len(got), want, last, got)
			}
		}
		for range 100 {
			log.Warn("refused")
		}
		lines(3, "who=me")
		time.Sleep(time.Second)
		for range 10 {
			log.Warn("refused")
		}
		lines(1, "suppressed=97")
		time.Sleep(time.Hour)
		for range 10 {
			log.With("more", 1).Warn("refused")
		}
		lines(3, "more=1")
	})
}

package demand

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
)

func TestFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var requested []string
		var answer func(ctx context.Context) error
		s := Source{Directory: workload.NewDirectory(workload.Options{}), Log: logging.Discard(), Request: func(ctx context.Context, name string) error {
			requested = append(requested, name)
			return answer(ctx)
		}}
		always := func(*workload.Snapshot) []string { return []string{"a", "b"} }

		answer = func(context.Context) error { return nil }
		if err := s.Fetch([]string{"a"}, always); err != nil || strings.Join(requested, " ") != "a b" {
			t.Errorf("%v, requested %q", err, requested)
		}
		answer = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		if err := s.Fetch([]string{"a"}, always); err == nil || err.Reason != reason.UnknownDestination {
			t.Errorf("no answer: %v", err)
		}
		answer = func(context.Context) error { return errors.New("too many names") }
		if err := s.Fetch([]string{"a"}, always); err == nil || err.Reason != reason.ResourceExhausted {
			t.Errorf("refused: %v", err)
		}
		// Answers that always need more come to an end.
		i := 0
		requested, answer = nil, func(context.Context) error { return nil }
		if err := s.Fetch([]string{"x"}, func(*workload.Snapshot) []string { i++; return []string{strings.Repeat("x", i+1)} }); err != nil || len(requested) != maxNames {
			t.Errorf("%v, requested %d times", err, len(requested))
		}
	})
}

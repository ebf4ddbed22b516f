package supervisor

import (
	"slices"
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	var b backoff
	var got []time.Duration
	for range 8 {
		got = append(got, b.next(time.Second))
	}
	if got[0] != firstDelay || got[7] != lastDelay || !slices.IsSorted(got) {
		t.Errorf("delays: %v", got)
	}
	if d := b.next(resetAfter); d != firstDelay {
		t.Errorf("after a long run: %v", d)
	}
}

package statuswriter

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/source"
)

var (
	then = "2026-01-02T03:04:05Z"
	now  = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
)

func entry(typ, value, reason string, generation any, since string) map[string]any {
	m := map[string]any{"type": typ, "status": value, "reason": reason, "message": "m", "lastTransitionTime": since}
	if generation != nil {
		m["observedGeneration"] = generation
	}
	return m
}

func TestMerge(t *testing.T) {
	foreign := map[string]any{"type": "example.com/Seen", "status": "True", "extra": "x"}
	bound := status.Condition{Type: status.WaypointBound, Status: status.True, Reason: "A", Message: "m"}
	unbound := status.Condition{Type: status.WaypointBound, Status: status.False, Reason: "B", Message: "m"}
	nowText := "2027-01-01T00:00:00Z"
	for _, tt := range []struct {
		name       string
		have       []any
		wanted     []status.Condition
		generation int64
		want       []any
		changed    bool
	}{
		{"nothing", nil, nil, 1, nil, false},
		{"foreign only", []any{foreign}, nil, 1, []any{foreign}, false},
		{"new", []any{foreign}, []status.Condition{bound}, 3,
			[]any{foreign, entry(status.WaypointBound, "True", "A", int64(3), nowText)}, true},
		{"same, as JSON reads it", []any{entry(status.WaypointBound, "True", "A", float64(3), then), foreign}, []status.Condition{bound}, 3,
			[]any{entry(status.WaypointBound, "True", "A", int64(3), then), foreign}, false},
		{"a service has no generation", []any{entry(status.WaypointBound, "True", "A", nil, then)}, []status.Condition{bound}, 0,
			[]any{entry(status.WaypointBound, "True", "A", nil, then)}, false},
		{"another reason keeps the time", []any{entry(status.WaypointBound, "True", "Z", int64(3), then)}, []status.Condition{bound}, 3,
			[]any{entry(status.WaypointBound, "True", "A", int64(3), then)}, true},
		{"a new generation keeps the time", []any{entry(status.WaypointBound, "True", "A", int64(2), then)}, []status.Condition{bound}, 3,
			[]any{entry(status.WaypointBound, "True", "A", int64(3), then)}, true},
		{"a transition", []any{entry(status.WaypointBound, "True", "A", int64(3), then)}, []status.Condition{unbound}, 3,
			[]any{entry(status.WaypointBound, "False", "B", int64(3), nowText)}, true},
		{"no longer so", []any{foreign, entry(status.WaypointBound, "True", "A", int64(3), then)}, nil, 3, []any{foreign}, true},
		{"the last of a type counts", nil, []status.Condition{bound, unbound}, 1,
			[]any{entry(status.WaypointBound, "False", "B", int64(1), nowText)}, true},
		{"twice there", []any{entry(status.WaypointBound, "True", "A", int64(3), then), entry(status.WaypointBound, "True", "A", int64(3), then)}, []status.Condition{bound}, 3,
			[]any{entry(status.WaypointBound, "True", "A", int64(3), then)}, true},
		{"not ours to write", nil, []status.Condition{{Type: "Accepted", Status: "True"}}, 1, nil, false},
		{"nonsense stays", []any{"x", nil}, nil, 1, []any{"x", nil}, false},
	} {
		got, changed := merge(source.KindService, tt.have, tt.wanted, tt.generation, now)
		if d := cmp.Diff(tt.want, got); d != "" || changed != tt.changed {
			t.Errorf("%s: changed %v\n%s", tt.name, changed, d)
		}
		if again, changed := merge(source.KindService, got, tt.wanted, tt.generation, now.Add(time.Hour)); changed {
			t.Errorf("%s: never settles: %v", tt.name, again)
		}
	}
}

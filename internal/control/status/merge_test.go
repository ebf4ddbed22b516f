package status

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
	bound := Condition{Type: WaypointBound, Status: True, Reason: "A", Message: "m"}
	unbound := Condition{Type: WaypointBound, Status: False, Reason: "B", Message: "m"}
	nowText := "2027-01-01T00:00:00Z"
	for _, tt := range []struct {
		name       string
		have       []any
		wanted     []Condition
		generation int64
		want       []any
		changed    bool
	}{
		{"nothing", nil, nil, 1, nil, false},
		{"foreign only", []any{foreign}, nil, 1, []any{foreign}, false},
		{"new", []any{foreign}, []Condition{bound}, 3,
			[]any{foreign, entry(WaypointBound, "True", "A", int64(3), nowText)}, true},
		{"same, as JSON reads it", []any{entry(WaypointBound, "True", "A", float64(3), then), foreign}, []Condition{bound}, 3,
			[]any{entry(WaypointBound, "True", "A", float64(3), then), foreign}, false},
		{"a service has no generation", []any{entry(WaypointBound, "True", "A", nil, then)}, []Condition{bound}, 0,
			[]any{entry(WaypointBound, "True", "A", nil, then)}, false},
		{"another reason keeps the time", []any{entry(WaypointBound, "True", "Z", int64(3), then)}, []Condition{bound}, 3,
			[]any{entry(WaypointBound, "True", "A", int64(3), then)}, true},
		{"a new generation keeps the time", []any{entry(WaypointBound, "True", "A", int64(2), then)}, []Condition{bound}, 3,
			[]any{entry(WaypointBound, "True", "A", int64(3), then)}, true},
		{"a transition", []any{entry(WaypointBound, "True", "A", int64(3), then)}, []Condition{unbound}, 3,
			[]any{entry(WaypointBound, "False", "B", int64(3), nowText)}, true},
		{"no longer so", []any{foreign, entry(WaypointBound, "True", "A", int64(3), then)}, nil, 3, []any{foreign}, true},
		{"the last of a type counts", nil, []Condition{bound, unbound}, 1,
			[]any{entry(WaypointBound, "False", "B", int64(1), nowText)}, true},
		{"twice there", []any{entry(WaypointBound, "True", "A", int64(3), then), entry(WaypointBound, "True", "A", int64(3), then)}, []Condition{bound}, 3,
			[]any{entry(WaypointBound, "True", "A", int64(3), then)}, true},
		{"not ours to write", nil, []Condition{{Type: "Accepted", Status: "True"}}, 1, nil, false},
		{"nonsense stays", []any{"x", nil}, nil, 1, []any{"x", nil}, false},
	} {
		report := Report{Generation: tt.generation, Owned: &Owned{Conditions: []string{WaypointBound}}, Sections: []Section{{Conditions: tt.wanted}}}
		merge := func(have []any, now time.Time) ([]any, bool) {
			next, changed := Merge(map[string]any{"conditions": have}, report, now)
			if !changed {
				return have, false
			}
			return next["conditions"].([]any), true
		}
		got, changed := merge(tt.have, now)
		if d := cmp.Diff(tt.want, got); d != "" || changed != tt.changed {
			t.Errorf("%s: changed %v\n%s", tt.name, changed, d)
		}
		if again, changed := merge(got, now.Add(time.Hour)); changed {
			t.Errorf("%s: never settles: %v", tt.name, again)
		}
	}
}

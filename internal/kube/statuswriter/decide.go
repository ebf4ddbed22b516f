package statuswriter

import (
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/registry"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/source"
)

// plurals are the resources of the kinds.
var plurals = map[string]string{
	source.KindService:             "services",
	source.KindServiceEntry:        "serviceentries",
	source.KindWorkloadEntry:       "workloadentries",
	source.KindAuthorizationPolicy: "authorizationpolicies",
	source.KindPeerAuthentication:  "peerauthentications",
}

// merge returns the conditions an object should have, given those it has, and
// whether that is a change. Order, foreign conditions, and the time of the
// last transition of what keeps its status are preserved. Of several wanted
// conditions of one type the last counts. generation 0 is left out.
func merge(kind string, have []any, wanted []status.Condition, generation int64, now time.Time) (next []any, changed bool) {
	ours := registry.ConditionTypes[kind]
	want := make(map[string]status.Condition, len(wanted))
	var order []string
	for _, c := range wanted {
		if _, again := want[c.Type]; !again {
			order = append(order, c.Type)
		}
		want[c.Type] = c
	}
	for _, h := range have {
		old, _ := h.(map[string]any)
		typ, _ := old["type"].(string)
		c, wants := want[typ]
		switch {
		case !slices.Contains(ours, typ):
			next = append(next, h)
		case !wants: // ours, and no longer so; or its second copy
			changed = true
		default:
			delete(want, typ)
			entry, differs := renew(old, c, generation, now)
			next = append(next, entry)
			changed = changed || differs
		}
	}
	for _, typ := range order {
		if c, missing := want[typ]; missing && slices.Contains(ours, typ) {
			entry, _ := renew(nil, c, generation, now)
			next = append(next, entry)
			changed = true
		}
	}
	return next, changed
}

// renew makes the entry of a condition from the one before, which may be nil.
func renew(old map[string]any, c status.Condition, generation int64, now time.Time) (entry map[string]any, changed bool) {
	entry = map[string]any{"type": c.Type, "status": c.Status, "reason": c.Reason, "message": c.Message}
	if generation != 0 {
		entry["observedGeneration"] = generation
	}
	since, _ := old["lastTransitionTime"].(string)
	if since == "" || old["status"] != c.Status {
		since = now.UTC().Format(time.RFC3339)
	}
	entry["lastTransitionTime"] = since
	for k, v := range entry {
		if old[k] != v && !sameNumber(old[k], v) {
			return entry, true
		}
	}
	return entry, false
}

// sameNumber compares what JSON decoders make of an integer.
func sameNumber(a, b any) bool {
	number := func(v any) (int64, bool) {
		switch n := v.(type) {
		case int64:
			return n, true
		case float64:
			return int64(n), true
		}
		return 0, false
	}
	x, ok := number(a)
	y, ok2 := number(b)
	return ok && ok2 && x == y
}

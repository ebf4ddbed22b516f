package status

import (
	"slices"
	"time"
)

// Merge returns the fields of a status that have to change for a report, and
// whether any has. have is the status as JSON; it is not changed. The order of
// lists, what other controllers wrote, and the time of the last transition of
// what keeps its status are preserved.
func Merge(have map[string]any, r Report, now time.Time) (next map[string]any, changed bool) {
	next = map[string]any{}
	top, _ := r.Section("", "")
	m := merger{r.Generation, now}
	if len(r.Owned.Conditions) > 0 {
		list, _ := have["conditions"].([]any)
		conditions, differs := m.conditions(list, top.Conditions, r.Owned.Conditions, false)
		if differs {
			next["conditions"] = conditions
		}
	}
	for _, f := range top.Fields {
		if KeyOf(have[f.Name]) != f.JSON {
			next[f.Name] = value(f.JSON)
		}
	}
	for _, l := range r.Owned.Lists {
		list, _ := have[l.Name].([]any)
		if entries, differs := m.list(list, l, r.Sections); differs {
			next[l.Name] = entries
		}
	}
	return next, len(next) > 0
}

// merger merges for one generation of an object, at one time.
type merger struct {
	generation int64
	now        time.Time
}

// list returns the entries that a list should have.
func (m merger) list(have []any, l List, sections []Section) (next []any, changed bool) {
	want := map[string]Section{}
	var order []string
	for _, s := range sections {
		if s.List == l.Name {
			if _, again := want[s.Key]; !again {
				order = append(order, s.Key)
			}
			want[s.Key] = s
		}
	}
	next = []any{}
	for _, h := range have {
		old, _ := h.(map[string]any)
		if l.Controller != "" && old["controllerName"] != l.Controller {
			next = append(next, h)
			continue
		}
		key := KeyOf(old[l.Key])
		s, wanted := want[key]
		if !wanted { // owned, and no longer so; or its second copy
			changed = true
			continue
		}
		delete(want, key)
		entry, differs := m.entry(old, l, s)
		next = append(next, entry)
		changed = changed || differs
	}
	for _, key := range order {
		s, missing := want[key]
		if !missing || l.Max > 0 && len(next) >= l.Max {
			continue
		}
		entry, _ := m.entry(nil, l, s)
		next = append(next, entry)
		changed = true
	}
	return next, changed
}

// entry makes an entry from the one before, which may be nil.
func (m merger) entry(old map[string]any, l List, s Section) (entry map[string]any, changed bool) {
	entry = make(map[string]any, len(old)+2)
	for k, v := range old {
		entry[k] = v
	}
	entry[l.Key] = value(s.Key)
	if l.Controller != "" {
		entry["controllerName"] = l.Controller
	}
	for _, f := range s.Fields {
		if KeyOf(old[f.Name]) != f.JSON {
			entry[f.Name], changed = value(f.JSON), true
		}
	}
	list, _ := old["conditions"].([]any)
	conditions, differs := m.conditions(list, s.Conditions, nil, true)
	if conditions == nil {
		conditions = []any{}
	}
	entry["conditions"] = conditions
	return entry, changed || differs
}

// conditions returns the conditions that a list should have, given those it
// has. Types that are not owned are preserved; all are with all.
func (m merger) conditions(have []any, wanted []Condition, owned []string, all bool) (next []any, changed bool) {
	owns := func(typ string) bool { return all || slices.Contains(owned, typ) }
	want := make(map[string]Condition, len(wanted))
	var order []string
	for _, c := range wanted {
		if _, again := want[c.Type]; !again {
			order = append(order, c.Type)
		}
		want[c.Type] = c
	}
	next = []any{}
	for _, h := range have {
		old, _ := h.(map[string]any)
		typ, _ := old["type"].(string)
		c, wants := want[typ]
		switch {
		case !owns(typ):
			next = append(next, h)
		case !wants: // owned, and no longer so; or its second copy
			changed = true
		default:
			delete(want, typ)
			entry, differs := m.condition(old, c)
			next = append(next, entry)
			changed = changed || differs
		}
	}
	for _, typ := range order {
		if c, missing := want[typ]; missing && owns(typ) {
			entry, _ := m.condition(nil, c)
			next = append(next, entry)
			changed = true
		}
	}
	return next, changed
}

// condition makes a condition from the one before, which may be nil.
func (m merger) condition(old map[string]any, c Condition) (entry map[string]any, changed bool) {
	entry = map[string]any{"type": c.Type, "status": c.Status, "reason": c.Reason, "message": c.Message}
	if m.generation != 0 {
		entry["observedGeneration"] = m.generation
	}
	since, _ := old["lastTransitionTime"].(string)
	if since == "" || old["status"] != c.Status {
		since = m.now.UTC().Format(time.RFC3339)
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

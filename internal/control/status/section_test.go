package status

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/testutil/eqtest"
)

func TestEqualitiesNoticeEveryField(t *testing.T) {
	// Owned is one value per kind.
	owned := []string{"Owned.Conditions[]", "Owned.Conditions", "Owned.Lists[].Name", "Owned.Lists[].Key", "Owned.Lists[].Controller", "Owned.Lists[].Max", "Owned.Lists"}
	eqtest.Fields(t, func(a, b *Report) bool { return a.Equal(*b) }, owned...)
	eqtest.Fields(t, func(a, b *Section) bool { return a.Equal(*b) })
	eqtest.Fields(t, func(a, b *Report) bool { return a.SaysAs(*b) }, append(owned, "Written", "Named")...)
}

const (
	us   = "example.org/us"
	them = "example.org/them"
)

var route = &Owned{Lists: []List{{Name: "parents", Key: "parentRef", Controller: us, Max: 3}}}

func parent(name string, conditions ...Condition) Section {
	return Section{List: "parents", Key: KeyOf(map[string]any{"name": name, "port": 80}), Conditions: conditions}
}

// JSON reads text as a Kubernetes client would.
func fromJSON(t testing.TB, text string) (m map[string]any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestSectionsBesideOtherControllers(t *testing.T) {
	pending := Maybe(Accepted, ReasonPending, "m")
	const (
		theirs = `{"parentRef":{"name":"a","port":80},"controllerName":"example.org/them","conditions":[{"type":"Accepted","status":"True","reason":"R"}]}`
		stale  = `{"parentRef":{"name":"gone"},"controllerName":"example.org/us","conditions":[]}`
		first  = `{"parentRef":{"port":80,"name":"a"},"controllerName":"example.org/us","extra":1,"conditions":[{"type":"Old","status":"True","reason":"R"}]}`
		now    = `{"parentRef":{"name":%q,"port":80},"controllerName":"example.org/us",%s"conditions":[{"type":"Accepted","status":"Unknown","reason":"Pending","message":"m","observedGeneration":2,"lastTransitionTime":"2027-01-01T00:00:00Z"}]}`
	)
	entry := func(name, more string) string { return fmt.Sprintf(now, name, more) }
	full := Owned{Lists: []List{{Name: "listeners", Key: "name"}}}
	listener := Section{List: "listeners", Key: KeyOf("http"), Fields: []Field{{"attachedRoutes", KeyOf(2)}}}
	for name, tt := range map[string]struct {
		have   string
		report Report
		want   string // the fields that change; empty for none
	}{
		"a new entry follows others":   {`{"parents":[` + theirs + `]}`, Report{Owned: route, Sections: []Section{parent("a", pending)}}, `{"parents":[` + theirs + `,` + entry("a", "") + `]}`},
		"ours is renewed in its place": {`{"parents":[` + first + `,` + theirs + `]}`, Report{Owned: route, Sections: []Section{parent("a", pending)}}, `{"parents":[` + entry("a", `"extra":1,`) + `,` + theirs + `]}`},
		"what is over goes":            {`{"parents":[` + stale + `,` + theirs + `]}`, Report{Owned: route}, `{"parents":[` + theirs + `]}`},
		"a second copy goes":           {`{"parents":[` + entry("a", "") + `,` + entry("a", "") + `]}`, Report{Owned: route, Sections: []Section{parent("a", pending)}}, `{"parents":[` + entry("a", "") + `]}`},
		"nothing to do":                {`{"parents":[` + theirs + `,` + entry("a", "") + `],"conditions":[{"type":"Accepted"}]}`, Report{Owned: route, Sections: []Section{parent("a", pending)}}, ``},
		"no more than fit":             {`{"parents":[` + theirs + `,` + theirs + `]}`, Report{Owned: route, Sections: []Section{parent("a", pending), parent("b", pending)}}, `{"parents":[` + theirs + `,` + theirs + `,` + entry("a", "") + `]}`},
		"a list of one controller":     {`{"listeners":[{"name":"https","conditions":[]},{"name":"http","attachedRoutes":1,"conditions":[]}]}`, Report{Owned: &full, Sections: []Section{listener}}, `{"listeners":[{"name":"http","attachedRoutes":2,"conditions":[]}]}`},
		"fields of the status":         {`{"addresses":[]}`, Report{Owned: &Owned{}, Sections: []Section{{Fields: []Field{{"addresses", KeyOf([]string{"a"})}}}}}, `{"addresses":["a"]}`},
	} {
		tt.report.Generation = 2
		have := fromJSON(t, tt.have)
		got, changed := Merge(have, tt.report, time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))
		if changed != (tt.want != "") {
			t.Errorf("%s: changed %v", name, changed)
		}
		if tt.want == "" {
			tt.want = `{}`
		}
		b, _ := json.Marshal(got)
		if d := cmp.Diff(fromJSON(t, tt.want), fromJSON(t, string(b))); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
		if d := cmp.Diff(fromJSON(t, tt.have), have); d != "" {
			t.Errorf("%s: the argument was changed:\n%s", name, d)
		}
	}
}

// stateOf reads a status for Report.In.
func stateOf(status map[string]any) (s State) {
	conditions := func(v any) (out []Seen) {
		list, _ := v.([]any)
		for _, c := range list {
			m := c.(map[string]any)
			text := func(k string) string { s, _ := m[k].(string); return s }
			generation, _ := m["observedGeneration"].(float64)
			out = append(out, Seen{Condition{Type: text("type"), Status: text("status"), Reason: text("reason"), Message: text("message")}, int64(generation)})
		}
		return out
	}
	s.Conditions = conditions(status["conditions"])
	for _, e := range status["parents"].([]any) {
		m := e.(map[string]any)
		controller, _ := m["controllerName"].(string)
		s.Entries = append(s.Entries, Entry{List: "parents", Key: KeyOf(m["parentRef"]), Controller: controller, Conditions: conditions(m["conditions"])})
	}
	return s
}

// TestMergeSettles: whatever is there, after one merge the report is in the
// status, a second merge changes nothing, and entries and conditions of other
// controllers are as before. In says the same as Merge.
func TestMergeSettles(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		condition := rapid.Custom(func(rt *rapid.T) Condition {
			return Condition{
				Type:   rapid.SampledFrom([]string{Accepted, "ResolvedRefs", "Foreign"}).Draw(rt, "type"),
				Status: rapid.SampledFrom([]string{True, False}).Draw(rt, "status"), Reason: "R", Message: rapid.SampledFrom([]string{"", "m"}).Draw(rt, "message"),
			}
		})
		written := func(c Condition) map[string]any {
			return map[string]any{
				"type": c.Type, "status": c.Status, "reason": c.Reason, "message": c.Message, "lastTransitionTime": "2026-01-01T00:00:00Z",
				"observedGeneration": float64(rapid.IntRange(1, 2).Draw(rt, "generation")),
			}
		}
		some := func(what string) (list []any) {
			for _, c := range rapid.SliceOfN(condition, 0, 3).Draw(rt, what) {
				list = append(list, written(c))
			}
			return list
		}
		names := rapid.SampledFrom([]string{"a", "b", "c"})
		parents := []any{}
		for range rapid.IntRange(0, 3).Draw(rt, "entries") {
			parents = append(parents, map[string]any{
				"parentRef": map[string]any{"port": float64(80), "name": names.Draw(rt, "name")}, "conditions": some("theirs"),
				"controllerName": rapid.SampledFrom([]string{us, them}).Draw(rt, "controller"),
			})
		}
		have := map[string]any{"conditions": some("conditions"), "parents": parents}
		r := Report{Generation: 2, Owned: &Owned{Conditions: []string{Accepted}, Lists: route.Lists}}
		if top := rapid.SliceOfN(condition, 0, 2).Draw(rt, "top"); len(top) > 0 {
			r.Sections = append(r.Sections, Section{Conditions: top})
		}
		for _, n := range rapid.SliceOfNDistinct(names, 0, 3, rapid.ID[string]).Draw(rt, "wanted") {
			r.Sections = append(r.Sections, parent(n, rapid.SliceOfN(condition, 0, 2).Draw(rt, "ours")...))
		}
		next, changed := Merge(have, r, time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC))
		if r.In(stateOf(have)) == changed {
			rt.Fatalf("changed %v, and In says otherwise: %v\n%+v", changed, have, r)
		}
		after := map[string]any{"conditions": have["conditions"], "parents": have["parents"]}
		for k, v := range next {
			after[k] = v
		}
		b, _ := json.Marshal(after)
		after = fromJSON(t, string(b))
		if !r.In(stateOf(after)) {
			rt.Fatalf("the report is not in the status after a merge: %v\n%+v", after, r)
		}
		if again, changed := Merge(after, r, time.Now()); changed {
			rt.Fatalf("a second merge changes %v", again)
		}
		if d := cmp.Diff(foreign(have), foreign(after)); d != "" {
			rt.Fatalf("what other controllers wrote has changed:\n%s", d)
		}
	})
}

// foreign returns what is not owned, in order, as text.
func foreign(status map[string]any) (out []string) {
	list, _ := status["conditions"].([]any)
	for _, c := range list {
		if c.(map[string]any)["type"] != Accepted {
			out = append(out, KeyOf(c))
		}
	}
	for _, e := range status["parents"].([]any) {
		if e.(map[string]any)["controllerName"] != us {
			out = append(out, KeyOf(e))
		}
	}
	return out
}

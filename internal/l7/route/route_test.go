package route

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

func get(authority, path string) *message.Head {
	return &message.Head{Method: []byte("GET"), Authority: []byte(authority), Path: []byte(path)}
}

func segments(p string) []Match { return []Match{{Path: Path{Segments, p}}} }

func origin(t *Target) string {
	if t == nil {
		return ""
	}
	return t.Rule.Origin
}

func TestPrecedence(t *testing.T) {
	table, problems := Compile([]Rule{
		{Origin: "all"},
		{Origin: "wild", Hosts: []string{"*.example.com"}, Matches: segments("/")},
		{Origin: "host", Hosts: []string{"foo.example.com"}, Matches: segments("/foo")},
		{Origin: "exact", Hosts: []string{"foo.example.com"}, Matches: []Match{{Path: Path{Exact, "/foo"}}}},
		{Origin: "long", Hosts: []string{"foo.example.com"}, Matches: segments("/foo/bar/")},
		{Origin: "regex", Hosts: []string{"foo.example.com"}, Matches: []Match{{Path: Path{Regex, "/x[0-9]+"}}}},
		{Origin: "method", Hosts: []string{"foo.example.com"}, Matches: []Match{{Path: Path{Segments, "/foo/m"}, Method: "POST"}}},
	}, BySpecificity)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for in, want := range map[string]string{
		"other /foo": "all", "example.com /": "all", "a.example.com /foo": "wild", "a.b.EXAMPLE.com:8080 /": "wild",
		"foo.example.com /foo": "exact", "foo.example.com /foo/": "host", "foo.example.com /foo/x?/foo": "host", "foo.example.com /foox": "wild",
		"foo.example.com /foo/bar": "long", "foo.example.com /foo/bar/x": "long", "foo.example.com /foo/barx": "host", "foo.example.com /x12": "regex",
		"foo.example.com /x12a": "wild", "foo.example.com /foo/m": "host", strings.Repeat("a", 300) + ".example.com /": "all", " /": "all",
	} {
		authority, path, _ := strings.Cut(in, " ")
		if got := origin(table.Lookup(get(authority, path))); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	steps := table.Explain(get("foo.example.com", "/foo/m"))
	if len(steps) != 2 || steps[0].Origin != "method" || steps[0].Misfit != "method" || steps[1].Origin != "host" || steps[1].Misfit != "" {
		t.Errorf("explanation: %+v", steps)
	}
}

// TestRegexIsWhole: an alternative or a line end cannot fit a part only.
func TestRegexIsWhole(t *testing.T) {
	table, _ := Compile([]Rule{{Origin: "r", Matches: []Match{{Path: Path{Regex, "/a|/b"}, Headers: []Value{{"x", Regex, "1|2", false}}}}}}, BySpecificity)
	for path, want := range map[string]string{"/a": "r", "/b": "r", "/a/x": "", "/x/b": "", "/a?x": "r"} {
		h := get("h", path)
		h.Add(message.NewKey("X"), []byte("2"))
		if got := origin(table.Lookup(h)); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestOnlyTheFirstConditionOfANameCounts(t *testing.T) {
	table, _ := Compile([]Rule{{Origin: "r", Matches: []Match{{Headers: []Value{{"X-A", Exact, "1", false}, {"x-a", Exact, "2", false}}}}}}, BySpecificity)
	h := get("h", "/")
	h.Add(message.NewKey("x-A"), []byte("1"))
	if table.Lookup(h) == nil {
		t.Error("the second condition on a name counts")
	}
}

func TestABadRuleCostsThatRuleAlone(t *testing.T) {
	table, problems := Compile([]Rule{
		{Origin: "regex", Matches: []Match{{Path: Path{Regex, "("}}}}, {Origin: "closing", Matches: []Match{{Path: Path{Regex, "a)|(b"}}}},
		{Origin: "host", Hosts: []string{"a*b"}}, {Origin: "port", Hosts: []string{"a:80"}}, {Origin: "empty", Hosts: []string{""}},
		{Origin: "path", Matches: segments("a")}, {Origin: "kind", Matches: []Match{{Path: Path{Prefix, "/"}}}},
		{Origin: "name", Matches: []Match{{Headers: []Value{{"", Exact, "x", false}}}}},
		{Origin: "value", Matches: []Match{{Query: []Value{{"x", Regex, "[", false}}}}},
		{Origin: "good", Matches: segments("/")},
	}, BySpecificity)
	if len(problems) != 9 || origin(table.Lookup(get("h", "/"))) != "good" {
		t.Errorf("%d problems, %v", len(problems), problems)
	}
	for i, p := range problems {
		if p.Rule != i {
			t.Errorf("problem %d is of rule %d", i, p.Rule)
		}
	}
}

// TestWeights: over evenly spread random values each backend gets its share
// exactly, refused references included.
func TestWeights(t *testing.T) {
	for _, c := range []struct {
		weights []uint32
		invalid int
	}{{[]uint32{90, 10}, -1}, {[]uint32{1, 0, 2}, 2}, {[]uint32{0, 1}, 0}, {[]uint32{math.MaxUint32, math.MaxUint32}, -1}, {[]uint32{7}, 0}} {
		var rule Rule
		var sum float64
		for i, w := range c.weights {
			b := Backend{Name: fmt.Sprint(i), Weight: w}
			if i == c.invalid {
				b.Invalid = "not found"
			}
			rule.Backends = append(rule.Backends, b)
			sum += float64(w)
		}
		table, _ := Compile([]Rule{rule}, BySpecificity)
		target := table.Lookup(get("h", "/"))
		const n = 3000
		got := map[string]int{}
		for i := range uint64(n) {
			b, f := target.Pick(i*(math.MaxUint64/n) + math.MaxUint64/n/2)
			if b == nil || (f == InvalidBackend) != (b.Invalid != "") || f != InvalidBackend && f != OK {
				t.Fatalf("%v: %+v %v", c, b, f)
			}
			got[b.Name]++
		}
		for i, w := range c.weights {
			if want := float64(w) / sum * n; math.Abs(float64(got[fmt.Sprint(i)])-want) > 1 {
				t.Errorf("%v: backend %d got %d of %d, want %.1f", c, i, got[fmt.Sprint(i)], n, want)
			}
		}
		if b, _ := target.Pick(math.MaxUint64); b == nil {
			t.Errorf("%v: the largest random value has no backend", c)
		}
	}
	for _, backends := range [][]Backend{nil, {{Name: "a"}, {Name: "b"}}} {
		table, _ := Compile([]Rule{{Backends: backends}}, BySpecificity)
		if _, f := table.Lookup(get("h", "/")).Pick(5); f != NoBackends {
			t.Errorf("%v: %v", backends, f)
		}
	}
}

func TestFailures(t *testing.T) {
	for f, want := range map[Failure][2]int{NoRoute: {404, 12}, NoBackends: {500, 14}, InvalidBackend: {500, 14}, NoEndpoints: {503, 14}} {
		if f.Status() != want[0] || f.GRPC() != want[1] || f.String() == "" {
			t.Errorf("%v: %d, %d", f, f.Status(), f.GRPC())
		}
	}
}

// big makes n rules over n/10 hosts.
func big(n int) *Table {
	rules := make([]Rule, n)
	for i := range rules {
		rules[i] = Rule{Origin: fmt.Sprint(i), Hosts: []string{fmt.Sprintf("h%d.example.com", i/10)}, Matches: []Match{
			{Path: Path{Segments, fmt.Sprintf("/api/v%d", i%10)}, Headers: []Value{{"x-canary", Exact, "1", false}}},
			{Path: Path{Segments, fmt.Sprintf("/api/v%d", i%10)}},
		}, Backends: []Backend{{Name: "a", Weight: 90}, {Name: "b", Weight: 10}}}
	}
	t, _ := Compile(rules, BySpecificity)
	return t
}

func TestLookupAllocatesNothing(t *testing.T) {
	table := big(1000)
	h := get("H42.example.com:80", "/api/v3/items?page=%31")
	if n := testing.AllocsPerRun(100, func() {
		if table.Lookup(h) == nil {
			t.Fatal("no route")
		}
	}); n != 0 {
		t.Errorf("%v allocations a look-up, want 0", n)
	}
}

// BenchmarkLookup has rules on many hosts, and on one host with many paths.
func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{10, 1000, 10000} {
		table := big(n)
		rules := make([]Rule, n)
		for i := range rules {
			rules[i] = Rule{Matches: segments(fmt.Sprintf("/api/v%d", i))}
		}
		flat, _ := Compile(rules, BySpecificity)
		for name, c := range map[string]struct {
			t *Table
			h *message.Head
		}{"hosts": {table, get(fmt.Sprintf("h%d.example.com", n/20), "/api/v3/items/1")}, "paths": {flat, get("h", fmt.Sprintf("/api/v%d/items/1", n/2))}} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if c.t.Lookup(c.h) == nil {
						b.Fatal("no route")
					}
				}
			})
		}
	}
}

// TestLargest: the number is in the share of the largest backend, for any weights.
func TestLargest(t *testing.T) {
	for seed := range uint64(2000) {
		g := gen{rand.New(rand.NewPCG(seed, 1))}
		var r Rule
		most := uint32(0)
		for range g.IntN(6) {
			w := uint32(g.IntN(4))
			if g.IntN(3) == 0 {
				w = g.Uint32()
			}
			most = max(most, w)
			r.Backends = append(r.Backends, Backend{Name: fmt.Sprint("b", len(r.Backends)), Weight: w})
		}
		target := newTarget(&r, Match{}, "*")
		b, failure := target.Pick(target.Largest())
		switch {
		case most == 0 && failure == NoBackends:
		case failure != OK || b.Weight != most:
			t.Fatalf("seed %d: %+v gives %+v, %v", seed, r.Backends, b, failure)
		}
		if n := len(target.Shares()); n != len(r.Backends) {
			t.Fatalf("%d shares", n)
		}
	}
}

func TestMatchText(t *testing.T) {
	for want, m := range map[string]Match{
		"everything":                      {},
		"GET and path /a":                 {Method: "GET", Path: Path{Exact, "/a"}},
		"path prefix /a and header x=1":   {Path: Path{Segments, "/a"}, Headers: []Value{{Name: "x", Kind: Exact, Value: "1"}}},
		"path regular expression /a.*":    {Path: Path{Regex, "/a.*"}},
		"header not x and parameter q=1*": {Headers: []Value{{Name: "x", Kind: Present, Not: true}}, Query: []Value{{Name: "q", Kind: Prefix, Value: "1"}}},
		"header x~a|b":                    {Headers: []Value{{Name: "x", Kind: Regex, Value: "a|b"}}},
	} {
		if got := m.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

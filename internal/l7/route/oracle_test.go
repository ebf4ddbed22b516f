package route

import (
	"fmt"
	"math/rand/v2"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// naive follows the text of HTTPRoute: it walks over every match of every rule
// and keeps the best. It shares nothing with the table but its input.
func naive(rules []Rule, h *message.Head, order Order) (best *Rule, match Match) {
	var host string
	first := func(r *Rule, m Match, hostname string) bool { // does this beat the best so far?
		if best == nil {
			return true
		}
		for _, d := range []int{
			hostScore(hostname) - hostScore(host),
			pathScore(m.Path) - pathScore(match.Path), len(m.Path.Value) - len(match.Path.Value),
			min(1, len(m.Method)) - min(1, len(match.Method)), len(m.Headers) - len(match.Headers), len(m.Query) - len(match.Query),
			best.Created.Compare(r.Created), strings.Compare(best.Route, r.Route),
		} {
			if d != 0 {
				return d > 0
			}
			if order == AsListed {
				return false
			}
		}
		return false
	}
	for i := range rules {
		r := &rules[i]
		hosts, matches := r.Hosts, r.Matches
		if len(hosts) == 0 {
			hosts = []string{"*"}
		}
		if len(matches) == 0 {
			matches = []Match{{}}
		}
		for _, hostname := range hosts {
			for _, m := range matches {
				if naiveHost(hostname, string(h.Authority)) && naiveMatch(m, h) && first(r, m, hostname) {
					best, match, host = r, m, hostname
				}
			}
		}
	}
	return best, match
}

// hostScore: exact names before wildcards, the longest wildcard first.
func hostScore(h string) int {
	switch {
	case h == "*":
		return 0
	case h[0] == '*':
		return len(h)
	}
	return 1000
}

func pathScore(p Path) int { return map[Kind]int{Exact: 3, Segments: 2, Regex: 1, Any: 0}[p.Kind] }

func naiveHost(pattern, authority string) bool {
	host, _, _ := strings.Cut(strings.ToLower(authority), ":")
	if rest, ok := strings.CutPrefix(pattern, "*."); ok {
		return strings.HasSuffix(host, "."+rest) && host != "."+rest
	}
	return pattern == "*" || host == pattern
}

func naiveMatch(m Match, h *message.Head) bool {
	path, query, _ := strings.Cut(string(h.Path), "?")
	switch m.Path.Kind {
	case Exact:
		if path != m.Path.Value {
			return false
		}
	case Segments:
		p := strings.TrimSuffix(m.Path.Value, "/")
		if path != p && !strings.HasPrefix(path, p+"/") {
			return false
		}
	case Regex:
		if regexp.MustCompile(`\A(?:`+m.Path.Value+`)\z`).FindString(path) != path {
			return false
		}
	}
	if m.Method != "" && m.Method != string(h.Method) {
		return false
	}
	for _, c := range m.Headers {
		var values []string
		for _, f := range h.Fields {
			if strings.EqualFold(string(f.Name), c.Name) {
				values = append(values, string(f.Value))
			}
		}
		if (len(values) > 0 && naiveValue(c, strings.Join(values, ","))) == c.Not {
			return false
		}
	}
	q, _ := url.ParseQuery(query)
	for _, c := range m.Query {
		if (q.Has(c.Name) && naiveValue(c, q.Get(c.Name))) == c.Not {
			return false
		}
	}
	return true
}

func naiveValue(c Value, v string) bool {
	switch c.Kind {
	case Exact:
		return v == c.Value
	case Prefix:
		return strings.HasPrefix(v, c.Value)
	case Regex:
		return regexp.MustCompile(`\A(?:` + c.Value + `)\z`).MatchString(v)
	}
	return true
}

type gen struct{ *rand.Rand }

func (g gen) of(s ...string) string { return s[g.IntN(len(s))] }

func (g gen) path() string {
	return g.of("/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "/b", "/b/a", "/b/")
}

func (g gen) values() (out []Value) {
	for _, n := range []string{"X", "y", "Accept"} {
		if g.IntN(4) == 0 {
			out = append(out, Value{n, []Kind{Exact, Exact, Prefix, Regex, Present}[g.IntN(5)], g.of("1", "2", "1,2"), g.IntN(6) == 0})
		}
	}
	return out
}

func (g gen) rules() (out []Rule) {
	for i := range 1 + g.IntN(12) {
		r := Rule{Origin: fmt.Sprint(i), Route: g.of("n/a", "n/b"), Created: time.Unix(int64(g.IntN(2)), 0)}
		for range g.IntN(3) {
			r.Hosts = append(r.Hosts, g.of("*", "h.x", "*.x", "*.h.x", "x"))
		}
		for range g.IntN(3) {
			m := Match{Path: Path{[]Kind{Any, Exact, Segments, Segments, Regex}[g.IntN(5)], g.path()}, Headers: g.values(), Query: g.values()}
			switch m.Path.Kind {
			case Any:
				m.Path.Value = ""
			case Regex:
				m.Path.Value = g.of("/a.*", "/[ab]", "/a|/b", ".*")
			}
			if g.IntN(3) == 0 {
				m.Method = g.of("GET", "POST")
			}
			r.Matches = append(r.Matches, m)
		}
		out = append(out, r)
	}
	return out
}

func (g gen) request() *message.Head {
	h := &message.Head{Method: []byte(g.of("GET", "POST")), Path: []byte(g.path()), Authority: []byte(g.of("h.x", "H.x:80", "a.h.x", "x", "y", "a.b.h.x", ".x"))}
	for _, n := range []string{"x", "Y", "accept"} {
		for range g.IntN(3) {
			h.Add(message.NewKey(n), []byte(g.of("1", "2", "12")))
		}
	}
	for i, n := range []string{"X", "y", "Accept"} {
		if g.IntN(2) == 0 {
			sep := "&"
			if i == 0 {
				sep = "?"
			} else if !strings.Contains(string(h.Path), "?") {
				sep = "?"
			}
			h.Path = append(h.Path, sep+n+"="+g.of("1", "2", "%31", "1%2c2", "+")...)
		}
	}
	return h
}

// agree compares the table with the oracle for one seed.
func agree(t *testing.T, seed uint64) {
	t.Helper()
	g := gen{rand.New(rand.NewPCG(seed, 1))}
	rules := g.rules()
	order := Order(g.IntN(2))
	table, problems := Compile(rules, order)
	if len(problems) > 0 {
		t.Fatalf("seed %d: %v", seed, problems)
	}
	for range 10 {
		h := g.request()
		want, match := naive(rules, h, order)
		got := table.Lookup(h)
		text := func(r *Rule, m Match) string { return fmt.Sprintf("%s %+v", r.Origin, m) }
		switch {
		case (got == nil) != (want == nil):
			t.Fatalf("seed %d: %s %s: got %v, want %v", seed, h.Authority, h.Path, got, want)
		case got != nil && text(got.Rule, got.Match) != text(want, match):
			t.Fatalf("seed %d: order %d, %s %s %s:\n got %s\nwant %s", seed, order, h.Method, h.Authority, h.Path, text(got.Rule, got.Match), text(want, match))
		}
		steps := table.Explain(h)
		for i, s := range steps {
			if last := i == len(steps)-1 && got != nil; (s.Misfit == "") != last || last && s.Origin != got.Rule.Origin {
				t.Fatalf("seed %d: explanation %+v does not end with %v", seed, steps, got)
			}
		}
		if got != nil && len(steps) == 0 {
			t.Fatalf("seed %d: no explanation of %s", seed, got.Rule.Origin)
		}
	}
}

func TestTableIsTheSpecification(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5000) {
		agree(t, seed)
	}
}

func FuzzLookup(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(agree)
}

package route

import (
	"bytes"
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// Table finds rules. It is safe for use by several goroutines.
type Table struct {
	exact, wildcard map[string]*paths // wildcard: by what follows "*"
	any             *paths
	asks            bool
}

// Asks reports whether an external authorizer is to be asked about requests of a rule. It
// may be called on a nil Table.
func (t *Table) Asks() bool { return t != nil && t.asks }

// Guard has Asks return true.
func (t *Table) Guard() { t.asks = true }

// Problem is a rule that was left out of a table.
type Problem struct {
	Rule int
	Err  error
}

// entry is one match of one rule.
type entry struct {
	target *Target
	match  condition
	rank   int // place in the precedence of its host
	places [2]int
}

// Target is a rule that a request takes, and by which of its matches.
type Target struct {
	Rule  *Rule
	Match Match // what fitted
	Host  string
	total uint64
}

// paths holds the entries of one host. Each list is ordered by rank.
type paths struct {
	all      []*entry
	exact    map[string][]*entry
	segments map[string][]*entry // without the slash at the end
	lengths  []bool              // which lengths segments has: a long path must not cost look-ups
	regex    []*entry
	any      []*entry
}

// Compile makes a table. A rule with a mistake is left out and reported; the
// others work.
func Compile(rules []Rule, order Order) (*Table, []Problem) {
	t := &Table{exact: map[string]*paths{}, wildcard: map[string]*paths{}}
	var problems []Problem
	for i := range rules {
		rule := rules[i]
		conditions, err := compileMatches(&rule)
		if err == nil {
			err = checkHosts(rule.Hosts)
		}
		if err != nil {
			problems = append(problems, Problem{i, fmt.Errorf("%s: %w", rule.Origin, err)})
			continue
		}
		t.asks = t.asks || rule.Guarded || rule.Filters.ExternalAuth != nil
		hosts := rule.Hosts
		if len(hosts) == 0 {
			hosts = []string{"*"}
		}
		for _, host := range slices.Compact(slices.Sorted(slices.Values(hosts))) {
			p := t.host(host)
			for j, c := range conditions {
				p.all = append(p.all, &entry{newTarget(&rule, c.source, host), c, 0, [2]int{i, j}})
			}
		}
	}
	for _, p := range t.exact {
		p.index(order)
	}
	for _, p := range t.wildcard {
		p.index(order)
	}
	if t.any != nil {
		t.any.index(order)
	}
	return t, problems
}

func newTarget(r *Rule, m Match, host string) *Target {
	t := &Target{Rule: r, Match: m, Host: host}
	for _, b := range r.Backends {
		t.total += uint64(b.Weight)
	}
	return t
}

func checkHosts(hosts []string) error {
	for _, h := range hosts {
		name := strings.TrimPrefix(h, "*.")
		if h != "*" && (message.CheckAuthority(name) != nil || strings.Contains(name, ":")) {
			return fmt.Errorf("host %q is neither a name nor *.name", h)
		}
	}
	return nil
}

func (t *Table) host(pattern string) *paths {
	pattern = strings.ToLower(pattern)
	m, key := t.exact, pattern
	switch {
	case pattern == "*":
		if t.any == nil {
			t.any = &paths{}
		}
		return t.any
	case pattern[0] == '*':
		m, key = t.wildcard, pattern[1:]
	}
	if m[key] == nil {
		m[key] = &paths{}
	}
	return m[key]
}

// index ranks the entries and files them by their path.
func (p *paths) index(order Order) {
	if order == BySpecificity {
		slices.SortStableFunc(p.all, bySpecificity)
	}
	p.exact, p.segments = map[string][]*entry{}, map[string][]*entry{}
	for rank, e := range p.all {
		e.rank = rank
		switch v := e.match.source.Path; v.Kind {
		case Exact:
			p.exact[v.Value] = append(p.exact[v.Value], e)
		case Segments:
			key := strings.TrimSuffix(v.Value, "/")
			p.segments[key] = append(p.segments[key], e)
			for len(p.lengths) <= len(key) {
				p.lengths = append(p.lengths, false)
			}
			p.lengths[len(key)] = true
		case Regex:
			p.regex = append(p.regex, e)
		default:
			p.any = append(p.any, e)
		}
	}
}

var kindOrder = [...]int{Exact: 0, Segments: 1, Regex: 2, Any: 3, Prefix: 3, Present: 3}

// bySpecificity is the precedence of HTTPRoute. Its text leaves the place of
// regular expressions open: they come after prefixes, as in Istio.
func bySpecificity(a, b *entry) int {
	x, y := &a.match.source, &b.match.source
	r, s := a.target.Rule, b.target.Rule
	return cmp.Or(
		cmp.Compare(kindOrder[x.Path.Kind], kindOrder[y.Path.Kind]),
		cmp.Compare(len(y.Path.Value), len(x.Path.Value)),
		-cmp.Compare(min(len(x.Method), 1), min(len(y.Method), 1)),
		cmp.Compare(len(y.Headers), len(x.Headers)),
		cmp.Compare(len(y.Query), len(x.Query)),
		r.Created.Compare(s.Created),
		cmp.Compare(r.Route, s.Route),
		cmp.Compare(a.places[0], b.places[0]),
		cmp.Compare(a.places[1], b.places[1]),
	)
}

// maxHost is the longest name of a host (RFC 1035, 2.3.4). Longer ones take
// the rules for every host.
const maxHost = 253

// Lookup returns the rule that h takes, or nil. Hosts go from the most to the
// least specific; the first of them that has a rule that fits decides. h's path
// must be in its normal form.
func (t *Table) Lookup(h *message.Head) *Target {
	var found *Target
	t.levels(h, func(p *paths) bool {
		if e := p.find(h); e != nil {
			found = e.target
		}
		return found == nil
	})
	return found
}

// levels calls f with the entries for each host pattern that fits, the most
// specific first, until f returns false.
func (t *Table) levels(h *message.Head, f func(*paths) bool) {
	var buf [maxHost]byte
	host := message.HostOf(h.Authority)
	if len(host) <= maxHost && len(t.exact)+len(t.wildcard) > 0 {
		n := copy(buf[:], host)
		host = buf[:n]
		for i, c := range host {
			if 'A' <= c && c <= 'Z' {
				host[i] = c | 0x20
			}
		}
		if p := t.exact[string(host)]; p != nil && !f(p) {
			return
		}
		for len(t.wildcard) > 0 && len(host) > 0 {
			dot := bytes.IndexByte(host[1:], '.')
			if dot < 0 {
				break
			}
			host = host[1+dot:]
			if p := t.wildcard[string(host)]; p != nil && !f(p) {
				return
			}
		}
	}
	if t.any != nil {
		f(t.any)
	}
}

// find returns the entry with the lowest rank that fits.
func (p *paths) find(h *message.Head) (best *entry) {
	p.lists(h.PathOnly(), func(list []*entry) {
		for _, e := range list {
			if best != nil && e.rank >= best.rank {
				return
			}
			if e.match.fits(h) {
				best = e
				return
			}
		}
	})
	return best
}

// lists calls f with each list that may have an entry for this path.
func (p *paths) lists(path []byte, f func([]*entry)) {
	if l := p.exact[string(path)]; l != nil {
		f(l)
	}
	for end := min(len(path), len(p.lengths)-1); end >= 0; end-- {
		if p.lengths[end] && (end == len(path) || path[end] == '/') {
			if l := p.segments[string(path[:end])]; l != nil {
				f(l)
			}
		}
	}
	if len(p.regex) > 0 {
		f(p.regex)
	}
	if len(p.any) > 0 {
		f(p.any)
	}
}

// Pick chooses a backend: of all values of random, each backend gets the share
// that its weight is of the sum. Refused references keep their share.
func (t *Target) Pick(random uint64) (*Backend, Failure) {
	if t.total == 0 {
		return nil, NoBackends
	}
	at, _ := bits.Mul64(random, t.total)
	for i := range t.Rule.Backends {
		b := &t.Rule.Backends[i]
		if at < uint64(b.Weight) {
			if b.Invalid != "" {
				return b, InvalidBackend
			}
			return b, OK
		}
		at -= uint64(b.Weight)
	}
	return nil, NoBackends
}

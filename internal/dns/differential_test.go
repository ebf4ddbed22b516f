package dns

import (
	"bytes"
	"flag"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	miekg "github.com/miekg/dns"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
)

var questions = flag.Int("questions", 100_000, "how many generated questions TestDifferential asks")

// oracle is a second implementation of what names stand for: it lists every spelling of
// every name that a client has, in the order of precedence.
type oracle struct {
	full      map[string]known // hosts, and endpoints of headless services
	completed map[string]known // what Kubernetes completes to one
	spelled   []string
	wildcards []known // the longest first
}

type known struct {
	alias string
	host  string
	// foreign: another namespace than the client's has it.
	foreign bool
	addrs   []netip.Addr
}

func newOracle(c Client) *oracle {
	o := &oracle{full: map[string]known{}, completed: map[string]known{}}
	var owned []known
	best := map[string]int{}
	rank := func(s service) int {
		kube := s.families != workloadpb.IPFamilies_AUTOMATIC
		switch {
		case s.namespace == c.Namespace && kube:
			return 4
		case s.namespace == c.Namespace:
			return 3
		case kube:
			return 2
		}
		return 1
	}
	for i, s := range services {
		if s.own && s.namespace != c.Namespace {
			continue
		}
		if j, ok := best[s.host]; !ok || rank(s) > rank(services[j]) {
			best[s.host] = i
		}
	}
	for host, i := range best {
		s := services[i]
		k := known{host: host, foreign: s.namespace != c.Namespace}
		for _, v := range s.vips {
			if network, a, _ := cut(v); network == c.Network {
				k.addrs = append(k.addrs, a)
			}
		}
		if in, ok := strings.CutSuffix(host, ".svc."+domain); ok && !strings.HasSuffix("."+in, "."+s.namespace) {
			continue // a name of the cluster that another namespace claims
		}
		headless := len(k.addrs) == 0 && strings.HasSuffix(host, ".svc."+domain)
		if headless {
			o.endpoints(&k, s, c)
		}
		if len(k.addrs) > 0 || headless {
			owned = append(owned, k)
		}
	}
	for _, k := range owned {
		if strings.HasPrefix(k.host, "*.") {
			o.wildcards = append(o.wildcards, k)
		} else {
			o.full[k.host] = k
		}
	}
	slices.SortFunc(o.wildcards, func(a, b known) int { return len(b.host) - len(a.host) })
	for _, k := range owned {
		rest, ok := strings.CutSuffix(k.host, ".svc."+domain)
		if !ok {
			continue
		}
		o.completed[rest+".svc"], o.completed[rest] = k, k
		if one, ok := strings.CutSuffix(rest, "."+c.Namespace); ok {
			o.completed[one] = k
		}
	}
	for name := range o.full {
		o.spelled = append(o.spelled, name)
	}
	for name := range o.completed {
		o.spelled = append(o.spelled, name)
	}
	slices.Sort(o.spelled)
	return o
}

// endpoints adds those of a headless service, and a name for each.
func (o *oracle) endpoints(k *known, s service, c Client) {
	all := slices.Clone(endpoints)
	for i := range manyPods {
		all = append(all, endpoint{"many-" + strconv.Itoa(i), "shop", "n1", []string{"10.2.0." + strconv.Itoa(i)}, []string{"shop/many.shop.svc.cluster.local"}, false})
	}
	for _, e := range all {
		if !slices.Contains(e.services, s.namespace+"/"+s.host) {
			continue
		}
		one := known{host: e.name + "." + s.host}
		for _, a := range e.addrs {
			if e.network == c.Network && (!e.unhealthy || s.unready) {
				one.addrs = append(one.addrs, netip.MustParseAddr(a))
			}
		}
		k.addrs = append(k.addrs, one.addrs...)
		o.full[one.host] = one
		for _, a := range e.addrs {
			if e.network == c.Network {
				o.full[strings.NewReplacer(".", "-", ":", "-").Replace(a)+"."+s.host] = one
			}
		}
	}
}

// find returns what a name stands for.
func (o *oracle) find(name string, c Client) (known, bool) {
	exact, found := o.exact(name)
	completed, complete := o.completed[name]
	switch {
	case found && !exact.foreign:
		return exact, true
	case complete:
		return completed, true
	case found:
		return exact, true
	}
	for _, search := range []string{c.Namespace + ".svc." + domain, "svc." + domain, domain} {
		rest, ok := strings.CutSuffix(name, "."+search)
		if !ok || rest == "" {
			continue
		}
		k, ok := o.exact(rest)
		if _, taken := o.completed[rest]; ok && k.foreign && (taken || o.mayBeKubernetes(name, c)) {
			continue
		}
		if ok {
			k.alias = rest
			return k, true
		}
	}
	return known{}, false
}

func (o *oracle) mayBeKubernetes(name string, c Client) bool {
	before, ok := strings.CutSuffix(name, ".svc."+domain)
	if !ok {
		return false
	}
	labels := strings.Split(before, ".")
	_, parent, _ := strings.Cut(name, ".")
	return len(labels) == 2 || len(labels) == 3 && slices.ContainsFunc(services, func(s service) bool {
		return s.host == parent && (!s.own || s.namespace == c.Namespace)
	})
}

func (o *oracle) exact(name string) (known, bool) {
	if k, ok := o.full[name]; ok {
		return k, true
	}
	if strings.Count(name, ".") > maxWildcards {
		return known{}, false
	}
	for _, k := range o.wildcards {
		if strings.HasSuffix(name, k.host[1:]) && len(name) > len(k.host)-1 {
			return k, true
		}
	}
	return known{}, false
}

// generated makes questions: of names that exist, of some that almost do, and of none.
type generated struct {
	*rand.Rand
	names []string
}

func newGenerated(o *oracle, seed uint64) *generated {
	return &generated{Rand: rand.New(rand.NewPCG(seed, 1)), names: o.spelled}
}

func (g *generated) pick(list ...string) string { return list[g.IntN(len(list))] }

func (g *generated) name() string {
	name := g.pick(g.names...)
	switch g.IntN(8) {
	case 0:
		name = g.label() + "." + name
	case 1:
		name = g.pick("a", "a.b", "x.narrow", "narrow") + ".wide.example"
	case 2:
		var labels []string
		for range 1 + g.IntN(6) {
			labels = append(labels, g.label())
		}
		name = strings.Join(labels, ".")
	case 3:
		_, name, _ = strings.Cut(name, ".")
	}
	name += g.pick("", "", "", ".shop.svc.cluster.local", ".svc.cluster.local", ".cluster.local", ".bank.svc.cluster.local", ".corp.test")
	b := []byte(name)
	for i := range b {
		if 'a' <= b[i] && b[i] <= 'z' && g.IntN(3) == 0 {
			b[i] -= 'a' - 'A'
		}
	}
	return string(b)
}

func (g *generated) label() string {
	return g.pick("web", "shop", "svc", "cluster", "local", "10-0-0-1", "web-0", "x", "_http", "_tcp", `a\.b`, `\000`, `\255`, "*", strings.Repeat("l", 63))
}

func (g *generated) message() *miekg.Msg {
	m := new(miekg.Msg)
	m.SetQuestion(miekg.Fqdn(g.name()), uint16(g.pickKind()))
	m.RecursionDesired, m.CheckingDisabled, m.AuthenticatedData = g.IntN(2) == 0, g.IntN(4) == 0, g.IntN(4) == 0
	if g.IntN(12) == 0 {
		m.Opcode = 1 + g.IntN(6)
	}
	if g.IntN(12) == 0 {
		m.Question[0].Qclass = []uint16{0, 3, 254, 255}[g.IntN(4)]
	}
	if g.IntN(20) == 0 {
		m.Response = true
	}
	if g.IntN(20) == 0 {
		m.Question = append(m.Question, m.Question[0])
	}
	if g.IntN(20) == 0 {
		m.Question = nil
	}
	if g.IntN(3) == 0 {
		m.SetEdns0(uint16(g.IntN(8192)), g.IntN(2) == 0)
		if opt := m.IsEdns0(); g.IntN(4) == 0 {
			opt.Option = append(opt.Option, &miekg.EDNS0_COOKIE{Code: miekg.EDNS0COOKIE, Cookie: "0011223344556677"})
			if g.IntN(4) == 0 {
				opt.SetVersion(1)
			}
		}
	}
	return m
}

func (g *generated) pickKind() int {
	return []int{TypeA, TypeA, TypeAAAA, TypeAAAA, TypeTXT, TypeSRV, 65, 255, TypePTR, TypeAXFR, 0, 65535}[g.IntN(12)]
}

// TestDifferential compares with miekg/dns, which reads and writes the messages, and with
// the oracle, which lists the names.
func TestDifferential(t *testing.T) {
	s := world(t)
	o := newOracle(client)
	g := newGenerated(o, 42)
	r := Resolver{Domain: domain}
	var q Question
	count := map[Decision]int{}
	for i := range *questions {
		m := g.message()
		m.Id = uint16(i)
		m.Compress = true
		b, err := m.Pack()
		if err != nil {
			continue // a name that is too long
		}
		kept := bytes.Clone(b)
		q.Parse(b)
		if q.ID != m.Id || q.Asks == m.Response {
			t.Fatalf("%v: id %d, asks %v", m, q.ID, q.Asks)
		}
		plain := plainly(m)
		if q.Plain != plain {
			t.Fatalf("%v: plain is %v", m, q.Plain)
		}
		if plain {
			asked := m.Question[0]
			if got := string(q.Name()) + "."; got != strings.ToLower(asked.Name) || q.Type != asked.Qtype || q.Class != asked.Qclass {
				t.Fatalf("%v: read as %s %d %d", m, got, q.Type, q.Class)
			}
			if opt := m.IsEdns0(); (opt != nil) != q.EDNS || opt != nil && q.Size != min(max(int(opt.UDPSize()), 512), maxUDP) {
				t.Fatalf("%v: EDNS %v, size %d", m, q.EDNS, q.Size)
			}
		}
		turn := g.Uint64()
		a, _, d := r.Resolve(s, &client, &q, turn)
		count[d]++
		want, wanted := expected(o, m, plain)
		if wanted != d {
			t.Fatalf("%v: decision %d, want %d", m, d, wanted)
		}
		if d != Answered {
			continue
		}
		for _, udp := range []bool{true, false} {
			out := q.Append(nil, b, a, udp)
			compare(t, m, want, unpack(t, out), len(out), udp)
			if !Answers(b, out) {
				t.Fatalf("%v: the answer is not one", m)
			}
		}
		if !bytes.Equal(b, kept) {
			t.Fatalf("%v: the question was changed", m)
		}
	}
	t.Logf("forwarded %d, of names of the mesh %d, answered %d", count[Forward], count[ForwardOwned], count[Answered])
	if *questions >= 1000 && (count[Forward] == 0 || count[ForwardOwned] == 0 || count[Answered] < *questions/10) {
		t.Error("the questions do not reach everything")
	}
}

// plainly reports whether a message is a question that may be answered.
func plainly(m *miekg.Msg) bool {
	if m.Response || m.Opcode != miekg.OpcodeQuery || len(m.Question) != 1 {
		return false
	}
	name := strings.TrimSuffix(m.Question[0].Name, ".")
	if name == "" || len(name) > maxName || strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" {
		return false
	}
	if strings.ContainsAny(name, `\*`) {
		return false
	}
	opt := m.IsEdns0()
	return opt == nil || opt.Version() == 0
}

func expected(o *oracle, m *miekg.Msg, plain bool) (known, Decision) {
	if !plain || m.Question[0].Qclass != miekg.ClassINET {
		return known{}, Forward
	}
	k, ok := o.find(strings.TrimSuffix(strings.ToLower(m.Question[0].Name), "."), client)
	switch kind := m.Question[0].Qtype; {
	case !ok:
		return known{}, Forward
	case kind == miekg.TypeA || kind == miekg.TypeAAAA:
		return k, Answered
	}
	return k, ForwardOwned
}

func compare(t *testing.T, q *miekg.Msg, k known, m *miekg.Msg, size int, udp bool) {
	t.Helper()
	limit := MaxMessage
	if udp {
		limit = 512
		if opt := q.IsEdns0(); opt != nil {
			limit = min(max(int(opt.UDPSize()), 512), maxUDP)
		}
	}
	var want []string
	for _, a := range k.addrs {
		if a.Is4() == (q.Question[0].Qtype == miekg.TypeA) {
			want = append(want, a.String())
		}
	}
	if k.alias != "" {
		want = append(want, "->"+k.alias)
	}
	slices.Sort(want)
	got := records(m)
	head := m.MsgHdr
	wantHead := miekg.MsgHdr{
		Id: q.Id, Response: true, Authoritative: true, RecursionDesired: q.RecursionDesired, RecursionAvailable: true,
		CheckingDisabled: q.CheckingDisabled, Truncated: head.Truncated,
	}
	if head != wantHead || !slices.Equal(m.Question, q.Question) || len(m.Ns) != 0 || size > limit {
		t.Fatalf("%v: %v (%d bytes, %d at most)", q, m, size, limit)
	}
	if head.Truncated {
		if !udp || len(got) >= len(want) {
			t.Fatalf("%v: cut to %d of %d", q, len(got), len(want))
		}
		return
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%v: %v, want %v", q, got, want)
	}
	for _, rr := range m.Answer {
		if h := rr.Header(); h.Ttl != TTL || h.Class != miekg.ClassINET {
			t.Fatalf("%v: %v", q, rr)
		}
	}
}

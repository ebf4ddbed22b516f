package sticky

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

var now = time.Unix(1_800_000_000, 0)

// shop is a directory of services, each with endpoints of its name and a number.
type shop struct {
	t   testing.TB
	dir *workload.Directory
	cfg *route.Config
}

func newShop(t testing.TB, services ...string) *shop {
	s := &shop{t: t, dir: workload.NewDirectory(workload.Options{}), cfg: &route.Config{Upstreams: map[string]*route.Upstream{}}}
	for _, name := range services {
		s.apply(&workloadpb.Address{Type: &workloadpb.Address_Service{Service: &workloadpb.Service{Name: name, Namespace: "ns", Hostname: name, Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}}})
		s.cfg.Upstreams[name] = &route.Upstream{Service: route.PortKey{Namespace: "ns", Hostname: name, Port: 80}}
	}
	return s
}

func (s *shop) apply(a *workloadpb.Address) {
	if _, bad := s.dir.Apply([]*workloadpb.Address{a}, nil); len(bad) > 0 {
		s.t.Fatal(bad)
	}
}

func (s *shop) pod(service string, i int) string {
	uid := fmt.Sprintf("c//Pod/ns/%s-%d", service, i)
	s.apply(&workloadpb.Address{Type: &workloadpb.Address_Workload{Workload: &workloadpb.Workload{
		Uid: uid, Name: fmt.Sprintf("%s-%d", service, i), Namespace: "ns", Addresses: [][]byte{netip.AddrFrom4([4]byte{10, service[0], 0, byte(i)}).AsSlice()},
		Services: map[string]*workloadpb.PortList{"ns/" + service: {Ports: []*workloadpb.Port{{ServicePort: 80, TargetPort: 8080}}}},
	}}})
	return uid
}

// rule is one with sessions, and its table target.
func rule(s *route.Session, backends ...string) *route.Target {
	r := route.Rule{Origin: "r", Route: "ns/r", Session: s, Matches: []route.Match{{Path: route.Path{Kind: route.Segments, Value: "/a"}}}}
	for _, b := range backends {
		r.Backends = append(r.Backends, route.Backend{Name: b, Weight: 1})
	}
	t, problems := route.Compile([]route.Rule{r}, route.BySpecificity)
	if len(problems) > 0 {
		panic(problems)
	}
	return t.Lookup(&message.Head{Method: []byte("GET"), Path: []byte("/a")})
}

// gets is what a client gets of an answer, as it sends it next.
func gets(s *route.Session, answer *message.Head) (*message.Head, string) {
	h := &message.Head{}
	if s.Header {
		i := answer.Find(message.NewKey(s.Name), 0)
		if i < 0 {
			return h, ""
		}
		v := string(answer.Fields[i].Value)
		h.Add(message.NewKey(s.Name), []byte(v))
		return h, v
	}
	i := answer.Find(keySetCookie, 0)
	if i < 0 {
		return h, ""
	}
	text := string(answer.Fields[i].Value)
	pair, _, _ := strings.Cut(text, ";")
	h.Add(message.NewKey("cookie"), []byte("other=1; "+pair+"; last=x"))
	return h, text
}

func TestSessions(t *testing.T) {
	for _, s := range []*route.Session{
		{Name: "sid"}, {Name: "x-sid", Header: true}, {Name: "sid", Absolute: time.Minute}, {Name: "sid", Absolute: time.Minute, Permanent: true},
	} {
		w := newShop(t, "v1", "v2")
		a, b := w.pod("v1", 1), w.pod("v1", 2)
		w.pod("v2", 1)
		table, target := NewTable(), rule(s, "v1", "v2")
		answer := &message.Head{}
		table.Answer(w.cfg, target, &target.Rule.Backends[0], b, Held{}, answer, w.dir.Snapshot(), now)
		request, text := gets(s, answer)
		want := "sid="
		for _, part := range []string{"c//Pod", "10.", "v1", "v2"} {
			if strings.Contains(text, part) {
				t.Errorf("%+v: %q shows %q", s, text, part)
			}
		}
		if s.Header {
			want = ""
		} else if !strings.Contains(text, "; Path=/a; HttpOnly") || strings.Contains(text, "Max-Age=60") != s.Permanent {
			t.Errorf("%+v: cookie %q", s, text)
		}
		if !strings.HasPrefix(text, want) || text == "" {
			t.Fatalf("%+v: %q", s, text)
		}
		// Another replica of the gateway, which has seen nothing.
		other := NewTable()
		held := other.Find(w.cfg, target.Rule, request, w.dir.Snapshot(), now.Add(59*time.Second))
		if held.UID != b || held.Backend != &target.Rule.Backends[0] {
			t.Fatalf("%+v: %+v", s, held)
		}
		answer = &message.Head{}
		other.Answer(w.cfg, target, held.Backend, b, held, answer, w.dir.Snapshot(), now.Add(59*time.Second))
		if _, again := gets(s, answer); again != "" && !s.Header || s.Header && again != text {
			t.Errorf("%+v: the answer to a session that goes on has %q", s, again)
		}
		if held := other.Find(w.cfg, target.Rule, request, w.dir.Snapshot(), now.Add(time.Minute)); (held.UID == "") != (s.Absolute > 0) {
			t.Errorf("%+v: after its time %+v", s, held)
		}
		if held := other.Find(w.cfg, target.Rule, request, w.dir.Snapshot(), now.Add(-2*time.Minute)); held.UID != "" {
			t.Errorf("%+v: before its time %+v", s, held)
		}
		// It answers elsewhere: the session is another one.
		answer = &message.Head{}
		other.Answer(w.cfg, target, held.Backend, a, held, answer, w.dir.Snapshot(), now)
		request, _ = gets(s, answer)
		if held := table.Find(w.cfg, target.Rule, request, w.dir.Snapshot(), now); held.UID != a {
			t.Errorf("%+v: moved to %+v", s, held)
		}
		// The endpoint leaves the service: its session ends, and it comes back with it.
		w.dir.Apply(nil, []string{a})
		if held := table.Find(w.cfg, target.Rule, request, w.dir.Snapshot(), now); held.UID != "" {
			t.Errorf("%+v: an endpoint that is gone: %+v", s, held)
		}
		w.pod("v1", 1)
		if held := table.Find(w.cfg, target.Rule, request, w.dir.Snapshot(), now); held.UID != a {
			t.Errorf("%+v: an endpoint that is back: %+v", s, held)
		}
		// A backend that gets nothing, or is refused, gets no sessions.
		for _, spoil := range []func(*route.Backend){func(b *route.Backend) { b.Weight = 0 }, func(b *route.Backend) { b.Invalid = "x" }} {
			spoilt := rule(s, "v1", "v2")
			spoil(&spoilt.Rule.Backends[0])
			if held := table.Find(w.cfg, spoilt.Rule, request, w.dir.Snapshot(), now); held.UID != "" {
				t.Errorf("%+v: %+v", s, held)
			}
		}
		// Another rule has other names.
		stranger := rule(s, "v1", "v2")
		stranger.Rule.Route = "ns/other"
		if held := table.Find(w.cfg, stranger.Rule, request, w.dir.Snapshot(), now); held.UID != "" {
			t.Errorf("%+v: of another route: %+v", s, held)
		}
	}
}

// TestOnlyOwnEndpoints: whatever value a client sends, of any endpoint of the mesh, it gets
// none but a ready one of the rule's backends.
func TestOnlyOwnEndpoints(t *testing.T) {
	w := newShop(t, "v1", "secret")
	var uids []string
	for i := range 4 {
		uids = append(uids, w.pod("v1", i), w.pod("secret", i))
	}
	target, table := rule(&route.Session{Name: "sid"}, "v1"), NewTable()
	rapid.Check(t, func(rt *rapid.T) {
		uid := rapid.SampledFrom(uids).Draw(rt, "uid")
		backend := rapid.SampledFrom([]string{"v1", "secret"}).Draw(rt, "backend")
		v := Value{uint32(now.Unix()), IDOf("ns/r", backend, uid)}
		if rapid.Bool().Draw(rt, "spoil") {
			v.ID[rapid.IntRange(0, 11).Draw(rt, "byte")] ^= 1
		}
		h := &message.Head{}
		h.Add(message.NewKey("cookie"), v.AppendTo([]byte("sid=")))
		held := table.Find(w.cfg, target.Rule, h, w.dir.Snapshot(), now)
		if held.UID != "" && !strings.HasPrefix(held.UID, "c//Pod/ns/v1-") {
			rt.Fatalf("%+v", held)
		}
	})
}

// TestTablesAreBounded: values that mean nothing cost no more than one look at the
// endpoints of a directory.
func TestTablesAreBounded(t *testing.T) {
	w := newShop(t, "v1")
	w.pod("v1", 1)
	table := NewTable()
	for range 2 * maxTables {
		target := rule(&route.Session{Name: "sid"}, "v1")
		h := &message.Head{}
		h.Add(message.NewKey("cookie"), Value{uint32(now.Unix()), ID{}}.AppendTo([]byte("sid=")))
		table.Find(w.cfg, target.Rule, h, w.dir.Snapshot(), now)
		if len(table.of) > maxTables {
			t.Fatalf("%d tables", len(table.of))
		}
		before := table.of[&target.Rule.Backends[0]]
		table.Find(w.cfg, target.Rule, h, w.dir.Snapshot(), now)
		if table.of[&target.Rule.Backends[0]] != before {
			t.Fatal("the endpoints were looked at again")
		}
	}
}

func TestSessionsAllocateNothing(t *testing.T) {
	w := newShop(t, "v1")
	uid := w.pod("v1", 1)
	for _, s := range []*route.Session{{Name: "sid"}, {Name: "x-sid", Header: true}} {
		target, table := rule(s, "v1"), NewTable()
		answer := &message.Head{}
		table.Answer(w.cfg, target, &target.Rule.Backends[0], uid, Held{}, answer, w.dir.Snapshot(), now)
		request, _ := gets(s, answer)
		d := w.dir.Snapshot()
		response := &message.Head{}
		if n := testing.AllocsPerRun(200, func() {
			held := table.Find(w.cfg, target.Rule, request, d, now)
			response.Reset()
			table.Answer(w.cfg, target, held.Backend, held.UID, held, response, d, now)
		}); n != 0 {
			t.Errorf("%+v: %v allocations a request", s, n)
		}
	}
}

func BenchmarkFind(b *testing.B) {
	w := newShop(b, "v1")
	uid := w.pod("v1", 1)
	target, table := rule(&route.Session{Name: "sid"}, "v1"), NewTable()
	answer := &message.Head{}
	table.Answer(w.cfg, target, &target.Rule.Backends[0], uid, Held{}, answer, w.dir.Snapshot(), now)
	request, _ := gets(target.Rule.Session, answer)
	b.ReportAllocs()
	for b.Loop() {
		table.Find(w.cfg, target.Rule, request, w.dir.Snapshot(), now)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("AAAAAAAAAAAAAAAAAAAAAA"))
	f.Add(Value{1, IDOf("a", "b", "c")}.AppendTo(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		if v, ok := Parse(p); ok && string(v.AppendTo(nil)) != string(p) {
			t.Fatalf("%q is read as %v", p, v)
		}
	})
}

// FuzzFind: any cookie and any header is read without a fault, and gives no endpoint.
func FuzzFind(f *testing.F) {
	w := newShop(f, "v1")
	w.pod("v1", 1)
	cookie, header := rule(&route.Session{Name: "sid"}, "v1"), rule(&route.Session{Name: "x-sid", Header: true}, "v1")
	table := NewTable()
	f.Add([]byte("a=b; sid=AAAAAAAAAAAAAAAAAAAAAA; c"))
	f.Fuzz(func(t *testing.T, p []byte) {
		h := &message.Head{}
		h.Add(message.NewKey("cookie"), p)
		h.Add(message.NewKey("x-sid"), p)
		for _, r := range []*route.Target{cookie, header} {
			if held := table.Find(w.cfg, r.Rule, h, w.dir.Snapshot(), now); held.UID != "" {
				t.Fatalf("%q gives %+v", p, held)
			}
		}
	})
}

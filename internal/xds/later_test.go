package xds

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"pgregory.net/rapid"
)

// The types of this test: workloads (W) name policies (P), which go first. A
// workload's body is the policy it names. A policy's body is "named", or
// "everywhere" when it holds for each workload without being named.

func ordered() *session {
	c := NewCache()
	s := newSession(c, []string{"P"})
	c.join(s)
	return s
}

// TestRemovalWaitsForWhatNamedIt: a removal goes out after the other type's
// change was accepted, an addition before it.
func TestRemovalWaitsForWhatNamedIt(t *testing.T) {
	transcript(t, ordered(), `
		set P a=named
		set W w=a
		synced P
		synced W
		sub W
		sub P
		> P 1 a=named
		> W 2 w=a
		ack P 1
		ack W 2
		# a is renamed to b
		set P b=named
		set W w=b
		del P a
		> P 3 b=named
		> W 4 w=b
		> silence
		ack P 3
		> silence
		ack W 4
		> P 5 -a
		ack P 5
		> silence
	`)
}

// TestAdditionIsNotOvertaken: while a client has not answered a policy, a
// workload that names the next one waits.
func TestAdditionIsNotOvertaken(t *testing.T) {
	transcript(t, ordered(), `
		synced P
		synced W
		sub P
		sub W
		> P 1
		> W 2
		ack W 2
		set P a=named
		set W w=a
		> silence
		ack P 1
		> P 3 a=named
		> W 4 w=a
	`)
}

// TestReconnectKeepsTheOrder: what changed while the client was away comes in
// the same order.
func TestReconnectKeepsTheOrder(t *testing.T) {
	for _, hello := range [][2]string{{"P", "W"}, {"W", "P"}} {
		s := ordered()
		known := map[string]string{"P": "known=a:named", "W": "known=w:a"}
		script := "set P b=named\nset W w=b\nsynced P\nsynced W\n" +
			"sub " + hello[0] + " " + known[hello[0]] + "\nsub " + hello[1] + " " + known[hello[1]] + `
			> P 1 b=named
			> W 2 w=b
			ack P 1
			> silence
			ack W 2
			> P 3 -a
		`
		transcript(t, s, script)
	}
}

// proxy is a client that applies what comes, in order.
type proxy struct {
	s         *session
	have      map[string]map[string]string // by type and name
	versions  map[string]map[string]string
	unackedIn []string                                // type nonce
	scope     func(*core.Node, string) (Scope, error) // nil: everything
	names     map[string][]string                     // by type; none: all that it may have
}

func newProxy() *proxy {
	return &proxy{have: map[string]map[string]string{"P": {}, "W": {}}, versions: map[string]map[string]string{"P": {}, "W": {}}}
}

func (p *proxy) connect(t *rapid.T, c *Cache) {
	if p.s != nil {
		c.leave(p.s)
	}
	p.s, p.unackedIn = newSession(c, []string{"P"}), nil
	p.s.scope = p.scope
	p.s.chunk = rapid.SampledFrom([]int{0, 1}).Draw(t, "chunk") // all, or one resource a response
	c.join(p.s)
	for _, typ := range rapid.Permutation([]string{"P", "W"}).Draw(t, "hello") {
		p.hear(t, &discovery.DeltaDiscoveryRequest{TypeUrl: typ, ResourceNamesSubscribe: p.names[typ], InitialResourceVersions: maps.Clone(p.versions[typ])})
	}
}

func (p *proxy) hear(t *rapid.T, r *discovery.DeltaDiscoveryRequest) {
	if _, err := hear(p.s, r); err != nil {
		t.Fatal(err)
	}
}

// receive applies one response, if there is one.
func (p *proxy) receive(t *rapid.T) bool {
	resp := said(p.s)
	if resp == nil {
		return false
	}
	for _, r := range resp.Resources {
		p.have[resp.TypeUrl][r.Name] = string(r.Resource.Value)
		p.versions[resp.TypeUrl][r.Name] = r.Version
	}
	for _, name := range resp.RemovedResources {
		delete(p.have[resp.TypeUrl], name)
		delete(p.versions[resp.TypeUrl], name)
	}
	p.unackedIn = append(p.unackedIn, resp.TypeUrl+" "+resp.Nonce)
	for w, named := range p.have["W"] {
		if p.have["P"][named] == "" && !slices.Contains(slices.Collect(maps.Values(p.have["P"])), "everywhere") {
			t.Fatalf("nothing holds for %s, which names %q: %v", w, named, p.have["P"])
		}
	}
	return true
}

func (p *proxy) ack(t *rapid.T) {
	i := rapid.IntRange(0, len(p.unackedIn)-1).Draw(t, "which")
	var typ, nonce string
	_, _ = fmt.Sscan(p.unackedIn[i], &typ, &nonce)
	p.unackedIn = slices.Delete(p.unackedIn, i, i+1)
	p.hear(t, &discovery.DeltaDiscoveryRequest{TypeUrl: typ, ResponseNonce: nonce})
}

// live connects, and does what a client does while publish is called in between.
// In the end it has received everything.
func (p *proxy) live(t *rapid.T, c *Cache, publish func()) {
	p.connect(t, c)
	for range rapid.IntRange(1, 40).Draw(t, "steps") {
		switch rapid.IntRange(0, 6).Draw(t, "step") {
		case 0, 1:
			publish()
		case 2:
			if rapid.IntRange(0, 3).Draw(t, "lost?") == 0 {
				p.connect(t, c)
			}
		case 3, 4:
			p.receive(t)
		default:
			if len(p.unackedIn) > 0 {
				p.ack(t)
			}
		}
	}
	for p.receive(t) || len(p.unackedIn) > 0 {
		for len(p.unackedIn) > 0 {
			p.ack(t)
		}
	}
}

// TestSomePolicyAlwaysHolds: policies are added, renamed, removed, narrowed to
// single workloads and widened, while clients answer late and connect again.
// In every published state some policy holds for each workload; so it does in
// every state of the client, and in the end the client has everything.
func TestSomePolicyAlwaysHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCache()
		newProxy().holds(t, c, publish)
	})
}

// holds follows a cache in which publish makes new states, and checks that the
// client has everything in the end. receive checks each state of the client.
func (p *proxy) holds(t *rapid.T, c *Cache, publish func(*rapid.T, *Cache, map[string]map[string]string)) {
	published := map[string]map[string]string{"P": {}, "W": {}}
	publish(t, c, published)
	c.MarkSynced("P")
	c.MarkSynced("W")
	p.live(t, c, func() { publish(t, c, published) })
	for typ, want := range published {
		if !maps.Equal(p.have[typ], want) {
			t.Fatalf("in the end the client has %v of %s, and should have %v", p.have[typ], typ, want)
		}
	}
}

// publish makes a new state. A workload names no policy only while one holds
// everywhere.
func publish(t *rapid.T, c *Cache, old map[string]map[string]string) {
	p, w := newState(t, old)
	c.Publish(p, w)
}

func newState(t *rapid.T, old map[string]map[string]string) (p, w Changes) {
	policies, workloads := map[string]string{}, map[string]string{}
	for _, name := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 3, rapid.ID[string]).Draw(t, "policies") {
		policies[name] = "named"
	}
	names := slices.Sorted(maps.Keys(policies))
	choice := names
	if everywhere := rapid.Bool().Draw(t, "everywhere"); everywhere {
		policies[rapid.SampledFrom(names).Draw(t, "which")] = "everywhere"
		choice = append(slices.Clone(names), "")
	}
	for _, w := range []string{"w1", "w2"} {
		workloads[w] = rapid.SampledFrom(choice).Draw(t, "named")
	}
	p, w = Changes{TypeURL: "P"}, Changes{TypeURL: "W"}
	for _, name := range names {
		p.Set = append(p.Set, &Resource{Name: name, Version: policies[name], Body: []byte(policies[name]), Late: policies[name] == "named"})
	}
	for name, body := range workloads {
		w.Set = append(w.Set, &Resource{Name: name, Version: "names " + body, Body: []byte(body)})
	}
	for name := range old["P"] {
		if policies[name] == "" {
			p.Removed = append(p.Removed, name)
		}
	}
	old["P"], old["W"] = policies, workloads
	return p, w
}

package xds

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"pgregory.net/rapid"
)

// own is the scope of a client in these tests: the group "own", and by name
// what begins with "open".
func own(*core.Node, string) (Scope, error) {
	return Scope{Groups: []Group{"own"}, Within: func(name string) bool { return strings.HasPrefix(name, "open") }}, nil
}

func TestScope(t *testing.T) {
	for name, script := range map[string]string{
		"a wildcard is the group": `
			set A a=1|@own b=1|@other c=1 open=1
			synced A
			sub A
			> A 1 a=1
			ack A 1
			set A a=2|@own b=2|@other c=2 open=2
			> A 2 a=2
			ack A 2
			set A d=1|@own|@more e=1|@more
			> A 3 d=1
			ack A 3
			del A a b c
			> A 4 -a`,
		"an empty group is answered": `
			set A b=1|@other
			synced A
			sub A
			> A 1
			ack A 1
			set A b=2|@other
			> silence`,
		"by name, within": `
			set A open=1|x open2=1 b=1|@other|y a=1|@own|z
			synced A
			sub A open x b y z nobody * -*
			> A 1 a=1 open=1 -b -nobody -y
			ack A 1
			set A open=2|x open2=2 b=2|@other|y a=2|@own|z
			> A 2 a=2 open=2`,
		"changes of what was asked for in vain are not sent": `
			set A b=1|@other|y
			synced A
			sub A b y * -*
			> A 1 -b -y
			ack A 1
			set A b=2|@other|y c=1|y
			> silence
			del A b
			> silence
			sub A b
			> A 2 -b`,
		"a name or an alias that comes to be permitted": `
			set A b=1|@other|y
			synced A
			sub A b y * -*
			> A 1 -b -y
			ack A 1
			set A b=1|@own|y
			> A 2 b=1
			ack A 2
			set A b=1|@other|y
			> A 3 -b`,
		"a member joins and leaves": `
			set A a=1|@other
			synced A
			sub A
			> A 1
			ack A 1
			set A a=1|@own
			> A 2 a=1
			ack A 2
			set A a=2|@other
			> A 3 -a
			ack A 3
			set A a=3|@other
			> silence`,
		"the name of a group is no name": `
			set A b=1|@other a=1|@own
			synced A
			sub A other own * -*
			> A 1 -other -own
			ack A 1
			set A b=2|@other a=2|@own
			> silence`,
		"parts of what is permitted, as far as they are": `
			set A opensvc=1 openpod=1|+opensvc secret=1|+opensvc a=1|@own|+opensvc
			synced A
			sub A opensvc * -*
			> A 1 a=1 openpod=1 opensvc=1
			ack A 1
			set A secret=2|+opensvc openpod=2|+opensvc
			> A 2 openpod=2`,
		"parts of what is not": `
			set A svc=1 openpod=1|+svc secret=1|+svc
			synced A
			sub A svc * -*
			> A 1 -svc`,
		"back with versions of everything": `
			set A a=1|@own new=1|@own old=2|@own b=1|@other open=1
			synced A
			sub A known=a:1,old:1,b:1,gone:1,open:1
			> A 1 new=1 old=2 -b -gone -open
			ack A 1
			> silence`,
		"back with versions, by name": `
			set A a=1|@own b=1|@other open=1
			synced A
			sub A * -* known=a:1,b:1,gone:1,open:1
			> A 1 -b -gone
			ack A 1
			set A a=2|@own b=2|@other open=2
			> A 2 a=2 open=2`,
		"a wildcard and names": `
			set A a=1|@own b=1|@other open=1 open2=1
			synced A
			sub A * open b known=open:1
			> A 1 a=1 -b
			ack A 1
			sub A open2
			> A 2 open2=1
			ack A 2
			set A open=2 b=2|@other
			> A 3 open=2
			ack A 3
			sub A -open
			set A open=3 open2=3 a=3|@own
			> A 4 a=3 open2=3 -open`,
		"a wildcard later, and no longer": `
			set A a=1|@own open=1 b=1|@other
			synced A
			sub A open
			> A 1 open=1
			ack A 1
			sub A *
			> A 2 a=1
			ack A 2
			sub A -*
			set A a=2|@own open=2 b=2|@other
			> A 3 open=2 -a`,
		"a removal under way is not lost with another name": `
			set A open=1 open2=1
			synced A
			sub A open open2
			> A 1 open2=1 open=1
			del A open
			sub A -open2
			ack A 1
			> A 2 -open -open2`,
	} {
		t.Run(name, func(t *testing.T) {
			c := NewCache()
			s := newSession(c, nil)
			s.scope = own
			c.join(s)
			transcript(t, s, script)
			if s.next() != nil {
				t.Error("the server says more")
			}
		})
	}
}

// TestNothingOfAType: the zero Scope is nothing, whatever is asked for.
func TestNothingOfAType(t *testing.T) {
	for name, ask := range map[string]string{
		"wildcard": "sub A\n> A 1", "name": "sub A a\n> A 1 -a", "alias": "sub A x\n> A 1 -x",
		"versions": "sub A known=a:1\n> A 1 -a", "on demand": "sub A * -*\n> silence", "known name": "sub A a known=a:1\n> A 1 -a",
	} {
		t.Run(name, func(t *testing.T) {
			c := NewCache()
			s := newSession(c, nil)
			s.scope = func(*core.Node, string) (Scope, error) { return Scope{}, nil }
			c.join(s)
			transcript(t, s, "set A a=1|x|@g\nsynced A\n"+ask+"\nack A 1\nset A a=2|x|@g b=1\n> silence\ndel A a\n> silence")
		})
	}
}

// TestOrderWithinAScope: what a client has of a first type stays until it has
// what replaces it, also when it only leaves what the client may have.
func TestOrderWithinAScope(t *testing.T) {
	s := ordered()
	s.scope = own
	transcript(t, s, `
		set P a=named|@own x=named|@other
		set W w=a|@own v=x|@other
		synced P
		synced W
		sub P
		sub W
		> P 1 a=named
		> W 2 w=a
		ack P 1
		ack W 2
		# w names b from now on, and a goes to another owner
		set P b=named|@own
		set W w=b|@own
		set P a=named|@other
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

// TestOrderWithinAScopeByName: the same for a client of single names, which
// connects again.
func TestOrderWithinAScopeByName(t *testing.T) {
	s := ordered()
	s.scope = own
	transcript(t, s, `
		set P openb=named
		set W openw=openb
		synced P
		synced W
		sub P opena openb known=opena:named
		sub W openw known=openw:opena
		> P 1 openb=named
		> W 2 openw=openb
		ack P 1
		> silence
		ack W 2
		> P 3 -opena
		ack P 3
		> silence
	`)
}

// TestClaimedVersionsAreBounded: a client keeps no more memory by claiming to
// have what it may not have than by asking for it.
func TestClaimedVersionsAreBounded(t *testing.T) {
	claims := func(n int) map[string]string {
		out := map[string]string{}
		for i := range n {
			out[fmt.Sprint("name-", i)] = "1"
		}
		return out
	}
	for n, ok := range map[int]bool{100: true, 101: false} {
		c := NewCache()
		s := newSession(c, nil)
		s.scope, s.mostNames = own, 100
		c.Update("A", []*Resource{{Name: "a", Version: "1", Groups: []Group{"own"}}}, nil)
		known := claims(n)
		known["a"] = "1" // which it may have
		if _, err := hear(s, &discovery.DeltaDiscoveryRequest{TypeUrl: "A", InitialResourceVersions: known}); (err == nil) != ok {
			t.Errorf("%d names: %v", n, err)
		}
	}
}

// twins are two sessions of one client: the second is of a cache that holds
// what the client may have, and nothing else.
type twins struct {
	caches   [2]*Cache
	sessions [2]*session
}

func (w *twins) connect() {
	for i, c := range w.caches {
		if w.sessions[i] != nil {
			c.leave(w.sessions[i])
		}
		w.sessions[i] = newSession(c, []string{"P"})
		w.sessions[i].scope = own
		c.join(w.sessions[i])
	}
}

// publish makes a change of one resource of both caches.
func (w *twins) publish(typ string, r *Resource) {
	w.caches[0].Update(typ, []*Resource{r}, nil)
	if scope, _ := own(nil, typ); scope.permits(r) {
		w.caches[1].Update(typ, []*Resource{r}, nil)
		return
	}
	w.caches[1].Update(typ, nil, []string{r.Name})
}

// TestForeignResourcesLeaveNoTrace: whatever a client asks for, by wildcard,
// name, alias, name of a group or the versions that it claims to have, it gets
// the same answers, in the same order, as if what it may not have did not exist.
func TestForeignResourcesLeaveNoTrace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &twins{caches: [2]*Cache{NewCache(), NewCache()}}
		types := []string{"A", "P"}
		for _, c := range w.caches {
			for _, typ := range types {
				c.Update(typ, []*Resource{{Name: "openz", Version: "0"}}, nil)
				c.MarkSynced(typ)
			}
		}
		typ := rapid.SampledFrom(types)
		name := rapid.SampledFrom([]string{"a", "b", "open1", "open2", "alias", "alias2", "own", "other", "*"})
		names := rapid.SliceOfN(name, 0, 4)
		nonces := map[string]string{}
		w.connect()
		for i := range rapid.IntRange(1, 40).Draw(t, "acts") {
			switch act := rapid.IntRange(0, 9).Draw(t, "act"); act {
			case 0, 1, 2:
				w.publish(typ.Draw(t, "type"), &Resource{
					Name: rapid.SampledFrom([]string{"a", "b", "open1", "open2"}).Draw(t, "name"), Version: fmt.Sprint(i % 7), Late: rapid.Bool().Draw(t, "late"),
					Aliases: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"alias", "alias2"}), 0, 2, rapid.ID[string]).Draw(t, "aliases"),
					With:    rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "open1"}), 0, 1, rapid.ID[string]).Draw(t, "with"),
					Groups:  rapid.SliceOfNDistinct(rapid.SampledFrom([]Group{"own", "other"}), 0, 2, rapid.ID[Group]).Draw(t, "groups"),
				})
			case 3:
				typ := typ.Draw(t, "type")
				for _, c := range w.caches {
					c.Update(typ, nil, []string{"a"})
				}
			case 4:
				w.connect()
				nonces = map[string]string{}
			case 5, 6:
				req := &discovery.DeltaDiscoveryRequest{TypeUrl: typ.Draw(t, "type"),
					ResourceNamesSubscribe: names.Draw(t, "subscribe"), ResourceNamesUnsubscribe: names.Draw(t, "unsubscribe")}
				if rapid.Bool().Draw(t, "knows") {
					req.InitialResourceVersions = map[string]string{}
					for _, n := range names.Draw(t, "known") {
						req.InitialResourceVersions[n] = fmt.Sprint(rapid.IntRange(0, 6).Draw(t, "version"))
					}
				}
				w.both(t, func(s *session) string { _, err := hear(s, req); return fmt.Sprint(err) })
			case 7:
				req := &discovery.DeltaDiscoveryRequest{TypeUrl: typ.Draw(t, "type")}
				if req.ResponseNonce = nonces[req.TypeUrl]; req.ResponseNonce != "" {
					w.both(t, func(s *session) string { _, err := hear(s, req); return fmt.Sprint(err) })
				}
			default:
				w.both(t, func(s *session) string {
					resp := said(s)
					if resp == nil {
						return "silence"
					}
					nonces[resp.TypeUrl] = resp.Nonce
					return render(resp)
				})
			}
		}
	})
}

// both does the same with both sessions, and compares.
func (w *twins) both(t *rapid.T, do func(*session) string) {
	t.Helper()
	if with, without := do(w.sessions[0]), do(w.sessions[1]); with != without {
		t.Fatalf("with foreign resources the server says %q, without them %q", with, without)
	}
}

// TestScopedPolicyAlwaysHolds is TestSomePolicyAlwaysHolds for a client that may
// have a part of each type, by wildcard or by name, while resources join and
// leave that part.
func TestScopedPolicyAlwaysHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCache()
		p := newProxy()
		p.scope = own
		if rapid.Bool().Draw(t, "by name") {
			p.names = map[string][]string{"P": {"a", "b", "c"}, "W": {"w1", "w2"}}
		}
		p.holds(t, c, publishScoped)
	})
}

// publishScoped makes a new state of the client's own part, as publish does, and
// gives what is not in it to another owner or takes it away.
func publishScoped(t *rapid.T, c *Cache, old map[string]map[string]string) {
	p, w := newState(t, old)
	for _, u := range []*Changes{&p, &w} {
		for _, r := range u.Set {
			r.Groups = []Group{"own"}
		}
		removed := u.Removed
		u.Removed = nil
		for _, name := range removed {
			if rapid.Bool().Draw(t, "given away") {
				u.Set = append(u.Set, &Resource{Name: name, Version: "foreign", Body: []byte("foreign"), Groups: []Group{"other"}})
			} else {
				u.Removed = append(u.Removed, name)
			}
		}
	}
	c.Publish(p, w)
}

// TestScopeIsAskedOncePerType: with the context of the stream and the node of
// the first request; an error ends the stream and its cause stays here.
func TestScopeIsAskedOncePerType(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t)
		var asked []string
		s.server.opts.Scope = func(ctx context.Context, n *core.Node, typeURL string) (Scope, error) {
			p, _ := ctx.Value(pipeKey{}).(*pipe)
			asked = append(asked, fmt.Sprint(p.caller.Owner, " ", n.GetId(), " ", typeURL))
			if typeURL == "secret" {
				return Scope{}, errors.New("the reason")
			}
			return Scope{Within: func(name string) bool { return name == "resource-1" }}, nil
		}
		p := s.open(pod("shop/web", "a"))
		p.says(&discovery.DeltaDiscoveryRequest{TypeUrl: typeA, Node: &core.Node{Id: "me"}, ResourceNamesSubscribe: []string{"absent"}})
		p.says(&discovery.DeltaDiscoveryRequest{TypeUrl: typeA, Node: &core.Node{Id: "else"}, ResourceNamesSubscribe: []string{"more"}})
		p.says(&discovery.DeltaDiscoveryRequest{TypeUrl: "B"})
		synctest.Wait()
		if err := p.over(); err != nil {
			t.Fatal(err)
		}
		p.says(&discovery.DeltaDiscoveryRequest{TypeUrl: "secret"})
		synctest.Wait()
		if err := p.over(); !errors.Is(err, errNotPermitted) || strings.Contains(fmt.Sprint(err), "the reason") {
			t.Errorf("the stream ends with %v", err)
		}
		if want := []string{"shop/web/a me " + typeA, "shop/web/a me B", "shop/web/a me secret"}; !slices.Equal(asked, want) {
			t.Errorf("asked for %q, want %q", asked, want)
		}
	})
}

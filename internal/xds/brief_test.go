package xds

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/transport/controlplane"
	"github.com/ambit-mesh/ambit/internal/xds/brief"
)

// TestAbsentNamesEnd: of many brief demands that no resource has, the oldest end. Demands
// that stay, and those with a resource, do not.
func TestAbsentNamesEnd(t *testing.T) {
	f := newFollower(nil, []TypeConfig{{TypeURL: typeA, OnDemand: true, Apply: picky(map[string]string{})}})
	f.hello()
	ask := func(name string, briefly bool) {
		t.Helper()
		if _, err := f.demand(typeA, name, briefly); err != nil {
			t.Fatal(err)
		}
	}
	answered := func(names ...string) {
		t.Helper()
		for _, name := range names {
			if !f.answered(typeA, name) {
				t.Errorf("%s is not answered", name)
			}
		}
	}
	ask("stays", false)
	ask("pod", true)
	ask("upgraded", true)
	ask("first", true)
	if f.answered(typeA, "first") || f.answered(typeA, "nothing") || f.answered(typeB, "first") {
		t.Error("answered before the answer")
	}
	resp := response("1", "-stays", "-upgraded", "-first")
	resp.Resources = append(resp.Resources, &discovery.Resource{Name: "uid", Aliases: []string{"pod", "other"}, Resource: anyOf(typeA, "1")})
	f.respond(resp)
	ask("upgraded", false)
	answered("stays", "pod", "upgraded", "first")
	f.demands()
	absent := func(n, from int) {
		resp := response("2")
		for i := range n {
			name := fmt.Sprint("absent", from+i)
			ask(name, true)
			resp.RemovedResources = append(resp.RemovedResources, name)
		}
		f.respond(resp)
	}
	absent(brief.Most-1, 0)
	answered("stays", "pod", "upgraded", "first", "absent0")
	if reqs := f.demands(); len(reqs) != 1 || len(reqs[0].GetResourceNamesUnsubscribe()) != 0 {
		t.Errorf("%d requests", len(reqs))
	}
	absent(1, brief.Most)
	answered("stays", "pod", "upgraded", fmt.Sprint("absent", brief.Most))
	if f.answered(typeA, "first") || f.answered(typeA, "absent0") {
		t.Error("the oldest are kept")
	}
	ask("first", true) // a program calls it again
	reqs := f.demands()
	if len(reqs) != 1 || len(reqs[0].GetResourceNamesUnsubscribe()) != brief.Most/4 || !slices.Equal(reqs[0].GetResourceNamesSubscribe(), []string{fmt.Sprint("absent", brief.Most), "first"}) {
		t.Fatalf("%d requests, ends %d", len(reqs), len(reqs[0].GetResourceNamesUnsubscribe()))
	}
	// A pod that goes is absent as well, and comes again under its address.
	f.respond(response("3", "-uid"))
	absent(brief.Most, 2*brief.Most)
	absent(brief.Most, 4*brief.Most)
	if f.answered(typeA, "pod") {
		t.Error("the address of a pod that has gone is followed permanently")
	}
	answered("stays", "upgraded")
}

// TestBriefDemandsConverge: whatever ends, what a client holds is what the server has, and
// what it follows is held; also where a resource is under way when its name ends.
func TestBriefDemandsConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCache()
		c.MarkSynced(typeA)
		held := map[string]string{}
		f := newFollower(nil, []TypeConfig{{TypeURL: typeA, OnDemand: true, Apply: picky(held)}})
		f.types[typeA].brief = brief.New(rapid.IntRange(1, 4).Draw(t, "most"))
		var s *session
		var up []*discovery.DeltaDiscoveryRequest
		var down []*discovery.DeltaDiscoveryResponse
		hears := func() bool {
			if len(up) == 0 {
				return false
			}
			req := up[0]
			up = up[1:]
			if _, err := hear(s, req); err != nil {
				t.Fatal(err)
			}
			return true
		}
		says := func() bool {
			resp := said(s)
			if resp != nil {
				down = append(down, resp)
			}
			return resp != nil
		}
		takes := func() bool {
			if len(down) == 0 {
				return false
			}
			resp := down[0]
			down = down[1:]
			up = append(up, f.respond(resp))
			return true
		}
		sends := func() bool {
			reqs := f.demands()
			for _, req := range reqs {
				up = append(up, proto.CloneOf(req))
			}
			return len(reqs) > 0
		}
		connect := func() {
			if s != nil {
				c.leave(s)
			}
			s, up, down = newSession(c, nil), f.hello(), nil
			c.join(s)
			hears()
		}
		connect()
		name := rapid.SampledFrom([]string{"a", "b", "c"})
		alias := rapid.SampledFrom([]string{"a1", "b1", "c1", "d1", "e1"})
		version := 0
		for range rapid.IntRange(1, 80).Draw(t, "acts") {
			switch rapid.IntRange(0, 9).Draw(t, "act") {
			case 0, 1:
				version++
				c.Update(typeA, []*Resource{{Name: name.Draw(t, "set"), Version: fmt.Sprint(version),
					Aliases: rapid.SliceOfNDistinct(alias, 0, 2, rapid.ID[string]).Draw(t, "aliases")}}, nil)
			case 2:
				c.Update(typeA, nil, []string{name.Draw(t, "del")})
			case 3, 4:
				n := alias.Draw(t, "demand")
				if rapid.IntRange(0, 3).Draw(t, "by name") == 0 {
					n = name.Draw(t, "demand")
				}
				if _, err := f.demand(typeA, n, rapid.IntRange(0, 5).Draw(t, "brief") != 0); err != nil {
					t.Fatal(err)
				}
			case 5:
				sends()
			case 6:
				hears()
			case 7:
				says()
			case 8:
				takes()
			case 9:
				if rapid.IntRange(0, 9).Draw(t, "connects") == 0 {
					connect()
				}
			}
		}
		for sends() || hears() || says() || takes() {
		}
		current := map[string]string{}
		for _, r := range c.Resources(typeA) {
			current[r.Name] = r.Version
			for _, n := range append([]string{r.Name}, r.Aliases...) {
				if f.types[typeA].demands[n] != nil && held[r.Name] == "" {
					t.Fatalf("%s is followed, and %s is not held", n, r.Name)
				}
			}
		}
		for n, v := range held {
			if current[n] != v {
				t.Fatalf("%s: holds version %q, the server has %q; follows %v", n, v, current[n], slices.Sorted(maps.Keys(f.types[typeA].demands)))
			}
		}
		for n := range f.types[typeA].demands {
			if !f.answered(typeA, n) {
				t.Fatalf("%s is not answered", n)
			}
		}
	})
}

// TestManyBriefNames: a program has a client ask for more names than a server serves. The
// stream goes on, and what there is comes.
func TestManyBriefNames(t *testing.T) {
	cache := NewCache()
	cache.MarkSynced(typeA)
	var entered atomic.Int64
	s := serve(t, cache, "127.0.0.1:0", ServerOptions{Caller: func(context.Context) Caller { entered.Add(1); return Caller{Owner: "gateway"} }})
	m := newMirror()
	c := follow(t, ClientConfig{Server: controlplane.Server{Address: "http://" + s.addr}, Types: []TypeConfig{{TypeURL: typeA, OnDemand: true, Apply: m.apply}}})
	ctx, cancel := context.WithTimeout(t.Context(), 6*patience)
	defer cancel()
	var wg sync.WaitGroup
	const callers, each = 50, otherNames/50 + 20
	for i := range callers {
		wg.Go(func() {
			for k := range each {
				if err := c.DemandBriefly(ctx, typeA, fmt.Sprintf("net/%d-%d", i, k)); err != nil {
					t.Errorf("name %d of caller %d: %v", k, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := entered.Load(); n != 1 {
		t.Errorf("%d streams", n)
	}
	cache.Update(typeA, []*Resource{{Name: "pod", Aliases: []string{"net/0-0"}, Body: []byte("v1")}}, nil)
	if err := c.DemandBriefly(ctx, typeA, "net/0-0"); err != nil || !c.Answered(typeA, "net/0-0") {
		t.Errorf("a pod at an address that was called long ago: %v", err)
	}
	m.await(t, "the pod", func() bool { return m.held["pod"] == "v1" })
}

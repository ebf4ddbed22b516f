package egress

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/xds"
)

func resource(t *testing.T, group string, p *egress.Policy) xds.Resource {
	t.Helper()
	body, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return xds.Resource{Name: group + "/" + p.Key(), Body: body}
}

// TestPolicies: a policy is there from its arrival until it is removed and no workload names
// it; one that cannot be read is there, and refuses.
func TestPolicies(t *testing.T) {
	s := NewPolicies(slog.New(slog.DiscardHandler))
	changes := 0
	s.Follow(func() { changes++ })
	a := &egress.Policy{Namespace: "shop", Name: "a", To: []egress.Entry{{Ports: []uint16{443}}}}
	of := func(name string) *egress.Policy {
		all, _ := s.Of(nil, []string{name})
		if len(all) == 0 {
			return nil
		}
		return all[0]
	}
	if _, missing := s.Of(nil, []string{"shop/a"}); missing != "shop/a" || s.Complete([]string{"shop/a"}) {
		t.Errorf("missing %q", missing)
	}
	if bad := s.Apply(xds.Delta{Updated: []xds.Resource{resource(t, "nodes", a)}}); len(bad) > 0 || of("shop/a") == nil || of("shop/a").Invalid != "" || changes != 1 {
		t.Errorf("%v, %+v, %d changes", bad, of("shop/a"), changes)
	}
	// The same object under a second group: the first one's end is not its end.
	s.Apply(xds.Delta{Updated: []xds.Resource{resource(t, "node/c/n", a)}})
	s.Apply(xds.Delta{Removed: []string{"nodes/shop/a", "nodes/shop/never"}})
	if s.Retired() || of("shop/a") == nil {
		t.Error("a policy with a resource is retired")
	}
	s.Apply(xds.Delta{Removed: []string{"node/c/n/shop/a"}})
	if !s.Retired() || of("shop/a") == nil {
		t.Error("a policy that workloads may name is gone")
	}
	s.Prune(func(key string) bool { return key == "shop/a" })
	if of("shop/a") == nil {
		t.Error("a policy that a workload names is gone")
	}
	s.Prune(func(string) bool { return false })
	if s.Retired() || of("shop/a") != nil {
		t.Error("a policy that no workload names is there")
	}
	for what, res := range map[string]xds.Resource{
		"garbage": {Name: "nodes/shop/a", Body: []byte{0xff}}, "another name": {Name: "nodes/shop/b", Body: resource(t, "x", a).Body}, "empty": {Name: "nodes/shop/c"},
	} {
		bad := s.Apply(xds.Delta{Updated: []xds.Resource{res}})
		p := of(keyOf(res.Name))
		if len(bad) != 1 || p == nil || p.Invalid == "" || egress.Decide([]*egress.Policy{p}, &egress.Call{Port: 443}, false).Outcome != egress.Refused {
			t.Errorf("%s: %v, %+v", what, bad, p)
		}
	}
}

func TestAwait(t *testing.T) {
	s := NewPolicies(slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	waits, done := make(chan struct{}, 10), make(chan struct{})
	go func() {
		defer close(done)
		s.Await(ctx, func() []string { waits <- struct{}{}; return []string{"shop/a"} })
	}()
	<-waits
	s.Apply(xds.Delta{Updated: []xds.Resource{resource(t, "nodes", &egress.Policy{Namespace: "shop", Name: "a"})}})
	<-done
	if ctx.Err() != nil {
		t.Error("it has waited in vain")
	}
	cancel()
	s.Await(ctx, func() []string { return []string{"shop/never"} })
}

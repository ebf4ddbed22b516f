package inflight

import (
	"slices"
	"testing"

	"github.com/ambit-mesh/ambit/internal/transport/hbone"
)

func TestLoads(t *testing.T) {
	var l Loads
	l.Add("a", 1)
	l.Add("a", 1)
	l.Add("b", 1)
	l.Add("b", -1)
	if l.Of("a") != 2 || l.Of("b") != 0 || l.Of("c") != 0 || len(l.n) != 1 {
		t.Errorf("%v", l.n)
	}
}

func TestTunnels(t *testing.T) {
	var all Tunnels
	p, q := &hbone.Pool{}, &hbone.Pool{}
	all.Add(p, "a", 1)
	all.Add(p, "a", 1)
	all.Add(q, "a", 1)
	all.Add(p, "a", -1)
	all.Add(q, "a", -1)
	if got := all.To("a"); !slices.Equal(got, []*hbone.Pool{p}) {
		t.Errorf("%v", got)
	}
	all.Add(p, "a", -1)
	if len(all.To("a")) != 0 || all.Len() != 0 {
		t.Errorf("%v", all.pools)
	}
}

package conns

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// The set is what a map would be.
func TestSetIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Set
		in := map[*Conn]bool{}
		var every []*Conn
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			if len(every) == 0 || rapid.Bool().Draw(t, "add") {
				c := &Conn{}
				s.Add(c)
				in[c] = true
				every = append(every, c)
				continue
			}
			c := every[rapid.IntRange(0, len(every)-1).Draw(t, "which")]
			s.Remove(c)
			delete(in, c)
		}
		if s.Len() != len(in) {
			t.Fatalf("%d instead of %d", s.Len(), len(in))
		}
		for _, c := range s.All() {
			if !in[c] {
				t.Fatal("a connection that was removed, or is listed twice")
			}
			delete(in, c)
		}
	})
}

func TestAbortBeforeBytesRun(t *testing.T) {
	var s Set
	c := &Conn{Inbound: true}
	s.Abort(c, reason.PolicyChanged, "a/b") // not in the set
	if why, _ := s.Aborted(c); why != reason.OK {
		t.Error("a connection that is not there was aborted")
	}
	s.Add(c)
	s.Abort(c, reason.PolicyChanged, "a/b")
	s.Abort(c, reason.Draining, "")
	if why, policy := s.Aborted(c); why != reason.PolicyChanged || policy != "a/b" {
		t.Errorf("%v %q: the first reason counts", why, policy)
	}
}

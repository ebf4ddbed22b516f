package xds

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestReached: a client has reached what was published when it has answered all of
// it, in how many responses ever, and whatever was published since.
func TestReached(t *testing.T) {
	for name, c := range map[string]struct {
		before, after string
		reached       bool
	}{
		"nothing is owed":              {"", "", true},
		"it is not sent":               {"set A x=2", "", false},
		"it is not answered":           {"set A x=2", "> A 3 x=2", false},
		"it is answered":               {"set A x=2", "> A 3 x=2\nack A 3", true},
		"it is rejected":               {"set A x=2", "> A 3 x=2\nnack A 3 no", false},
		"it is accepted later":         {"set A x=2", "> A 3 x=2\nnack A 3 no\nset A x=3\n> A 4 x=3\nack A 4", true},
		"another type is not answered": {"set A x=2\nset B z=2", "> A 3 x=2\n> B 4 z=2\nack A 3", false},
		"both types are":               {"set A x=2\nset B z=2", "> A 3 x=2\n> B 4 z=2\nack A 3\nack B 4", true},
		"a former response is":         {"set A x=2\n> A 3 x=2\nset A y=2", "ack A 3", false},
		"and then the present one":     {"set A x=2\n> A 3 x=2\nset A y=2", "ack A 3\n> A 4 y=2\nack A 4", true},
		"more is published":            {"set A x=2", "> A 3 x=2\nset A y=3\nack A 3", true},
	} {
		t.Run(name, func(t *testing.T) {
			cache := NewCache()
			s := newSession(cache, nil)
			cache.join(s)
			for _, typ := range []string{"A", "B"} {
				cache.MarkSynced(typ)
			}
			transcript(t, s, "set A x=1 y=1\nset B z=1\nsub A\n> A 1 x=1 y=1\nack A 1\nsub B\n> B 2 z=1\nack B 2")
			transcript(t, s, c.before)
			g := cache.goals(nil)
			transcript(t, s, c.after)
			if len(g) != 1 || g[0].s.reached(g[0].clock) != c.reached {
				t.Errorf("%d clients, reached %v", len(g), !c.reached)
			}
		})
	}
}

// TestAccepted: the wait ends with the answer of the clients that it is for, with
// their leaving, or with the context.
func TestAccepted(t *testing.T) {
	for name, c := range map[string]struct {
		groups []Group
		then   func(*Cache, *session)
		end    bool
	}{
		"an answer":             {nil, func(c *Cache, s *session) { answer(t, c, s) }, true},
		"the client leaves":     {nil, func(c *Cache, s *session) { c.leave(s) }, true},
		"no answer":             {nil, func(*Cache, *session) {}, false},
		"the client's group":    {[]Group{"own"}, func(*Cache, *session) {}, false},
		"answer of the group":   {[]Group{"own"}, func(c *Cache, s *session) { answer(t, c, s) }, true},
		"another group, nobody": {[]Group{"other"}, func(*Cache, *session) {}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cache := NewCache()
				s := newSession(cache, nil)
				s.scope = own
				cache.join(s)
				cache.MarkSynced("A")
				transcript(t, s, "set A x=1|@own\nsub A\n> A 1 x=1\nack A 1\nset A x=2|@own\n> A 2 x=2")
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- cache.Accepted(ctx, c.groups) }()
				synctest.Wait()
				c.then(cache, s)
				synctest.Wait()
				cancel()
				if err := <-done; c.end != (err == nil) || !c.end && !errors.Is(err, context.Canceled) {
					t.Errorf("the wait ends with %v", err)
				}
			})
		})
	}
}

// answer has a client accept its second response.
func answer(t *testing.T, c *Cache, s *session) {
	transcript(t, s, "ack A 2")
	c.advanced()
}

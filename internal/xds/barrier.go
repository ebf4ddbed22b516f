package xds

import (
	"context"
	"slices"
)

// A change that has to be carried out in stages waits between them until the clients
// that a stage is about have accepted what was published before it.

// debts are the part of a watch that a barrier looks at.
type debts struct {
	// covered is what session.clock was when the response under way left nothing
	// pending, and paid that of the last one that was answered.
	covered, paid uint64
}

// goal is what one client has to have answered.
type goal struct {
	s     *session
	clock uint64
}

// Accepted waits until the clients that may have the members of one of the groups
// have answered everything that was published before the call, and sent in full. Nil
// is all clients. Clients that leave are not waited for. A client's rejection is no
// answer. It returns the error of ctx when that ends first.
func (c *Cache) Accepted(ctx context.Context, groups []Group) error {
	c.waiting.Add(1)
	defer c.waiting.Add(-1)
	goals := c.goals(groups)
	for {
		c.mu.Lock()
		if c.progress == nil {
			c.progress = make(chan struct{})
		}
		progress := c.progress
		goals = slices.DeleteFunc(goals, func(g goal) bool {
			_, here := c.sessions[g.s]
			return !here || g.s.reached(g.clock)
		})
		c.mu.Unlock()
		if len(goals) == 0 {
			return nil
		}
		select {
		case <-progress:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (c *Cache) goals(groups []Group) (out []goal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.sessions {
		if groups == nil || s.mayHave(groups) {
			out = append(out, goal{s, s.now()})
		}
	}
	return out
}

// advanced wakes those that wait in Accepted.
func (c *Cache) advanced() {
	if c.waiting.Load() == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.progress != nil {
		close(c.progress)
		c.progress = nil
	}
}

func (s *session) now() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.clock
}

// mayHave reports whether the client follows a type of which it may have members of
// one of the groups.
func (s *session) mayHave(groups []Group) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.types {
		if shares(w.scope.Groups, groups) {
			return true
		}
	}
	return false
}

// reached reports whether the client has answered everything that it was owed when
// the clock was that.
func (s *session) reached(clock uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.types {
		if w.paid < clock && (w.dueNow() || w.sent != "" || w.rejected != "") {
			return false
		}
	}
	return true
}

package xds

import (
	"context"
	"sync"
)

// seats are the turns of clients that connect: who has one may say what it
// has. Accounts take turns, and the clients of one account are served in the
// order in which they came.
type seats struct {
	most        int
	mostAccount int // of one account

	mu     sync.Mutex
	taken  int
	held   map[string]int // by account
	queues map[string][]*seat
	// order lists the accounts that wait; the first is next.
	order []string
}

// seat is a client's place, in the queue or taken.
type seat struct {
	account string
	granted chan struct{}
}

func newSeats(most, mostAccount int) *seats {
	return &seats{most: most, mostAccount: mostAccount, held: map[string]int{}, queues: map[string][]*seat{}}
}

// take waits for a seat until the context ends; release gives it back, and may
// be called more than once.
func (s *seats) take(ctx context.Context, account string) (release func(), err error) {
	w := s.ask(account)
	select {
	case <-w.granted:
	case <-ctx.Done():
		s.leave(w)
		return nil, ctx.Err()
	}
	return sync.OnceFunc(func() { s.release(w) }), nil
}

// ask enters the queue, and grants what can be granted.
func (s *seats) ask(account string) *seat {
	w := &seat{account, make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.queues[account]) == 0 {
		s.order = append(s.order, account)
	}
	s.queues[account] = append(s.queues[account], w)
	s.grant()
	return w
}

// leave takes back what ask began.
func (s *seats) leave(w *seat) {
	s.mu.Lock()
	q := s.queues[w.account]
	for i := range q {
		if q[i] == w {
			s.requeue(w.account, append(q[:i:i], q[i+1:]...))
			s.mu.Unlock()
			return
		}
	}
	s.mu.Unlock()
	s.release(w) // it was granted meanwhile
}

func (s *seats) release(w *seat) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken--
	if s.held[w.account]--; s.held[w.account] == 0 {
		delete(s.held, w.account)
	}
	s.grant()
}

// grant gives free seats to the accounts that wait, one after the other.
func (s *seats) grant() {
	for s.taken < s.most {
		next := -1
		for i, account := range s.order {
			if s.held[account] < s.mostAccount {
				next = i
				break
			}
		}
		if next < 0 {
			return
		}
		account := s.order[next]
		q := s.queues[account]
		s.order = append(s.order[:next:next], s.order[next+1:]...)
		if len(q) > 1 {
			s.order = append(s.order, account)
		}
		s.setQueue(account, q[1:])
		s.taken++
		s.held[account]++
		close(q[0].granted)
	}
}

// requeue replaces an account's queue.
func (s *seats) requeue(account string, q []*seat) {
	if len(q) == 0 {
		for i, a := range s.order {
			if a == account {
				s.order = append(s.order[:i:i], s.order[i+1:]...)
				break
			}
		}
	}
	s.setQueue(account, q)
}

func (s *seats) setQueue(account string, q []*seat) {
	if len(q) == 0 {
		delete(s.queues, account)
		return
	}
	s.queues[account] = q
}

package fair

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// parties ask one after the other, and note the order in which they are served.
type parties struct {
	t      *testing.T
	q      *Queue
	mu     sync.Mutex
	served []string // guarded by mu
}

// ask takes a place for a second, as soon as there is one.
func (p *parties) ask(ctx context.Context, party string, n int) {
	for range n {
		go func() {
			release, err := p.q.Take(ctx, party)
			if err != nil {
				return
			}
			p.mu.Lock()
			p.served = append(p.served, party)
			p.mu.Unlock()
			time.Sleep(time.Second)
			release()
			release()
		}()
		synctest.Wait()
	}
}

func TestPartiesTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &parties{t: t, q: New(Limits{Places: 1})}
		p.ask(t.Context(), "many", 1000)
		p.ask(t.Context(), "a", 1)
		p.ask(t.Context(), "b", 2)
		time.Sleep(6500 * time.Millisecond)
		synctest.Wait()
		p.mu.Lock()
		// The first came alone; from then on each party has its turn.
		if want := []string{"many", "many", "a", "b", "many", "b", "many"}; !slices.Equal(p.served, want) {
			t.Errorf("served %q, not %q", p.served, want)
		}
		p.mu.Unlock()
		time.Sleep(time.Hour)
		synctest.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.q.mu.Lock()
		defer p.q.mu.Unlock()
		if p.q.taken != 0 || p.q.waiting != 0 || len(p.q.held)+len(p.q.queues)+len(p.q.order) != 0 || len(p.served) != 1003 {
			t.Errorf("left: %+v, %d served", p.q, len(p.served))
		}
	})
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Limits{Places: 3, PlacesEach: 2, Waiting: 4, WaitingEach: 3})
		take := func(party string) (err error) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
			defer cancel()
			_, err = q.Take(ctx, party)
			return err
		}
		if first, second := take("a"), take("a"); first != nil || second != nil {
			t.Fatal("places are free")
		}
		if err := take("a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the third place of a: %v", err)
		}
		if take("b") != nil {
			t.Error("a place was not kept for b")
		}
		for i := range 3 {
			go func() { _, _ = q.Take(t.Context(), "a") }()
			synctest.Wait()
			if q.waiting != i+1 {
				t.Errorf("%d wait", q.waiting)
			}
		}
		if err := take("a"); !errors.Is(err, ErrFull) {
			t.Errorf("the fourth of a that waits: %v", err)
		}
		go func() { _, _ = q.Take(t.Context(), "b") }()
		synctest.Wait()
		if err := take("c"); !errors.Is(err, ErrFull) {
			t.Errorf("the fifth that waits: %v", err)
		}
	})
}

// TestCountsStayRight: whatever is asked, given up and given back.
func TestCountsStayRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Limits{Places: 4, PlacesEach: 2, Waiting: 50, WaitingEach: 10})
		for i := range 3000 {
			go func() {
				time.Sleep(rand.N(time.Minute))
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(2*time.Second))
				defer cancel()
				release, err := q.Take(ctx, fmt.Sprint(i%7))
				if err == nil {
					time.Sleep(rand.N(300 * time.Millisecond))
					release()
				}
			}()
		}
		for range 700 {
			time.Sleep(100 * time.Millisecond)
			q.mu.Lock()
			if q.taken < 0 || q.taken > 4 || q.waiting < 0 || q.waiting > 50 {
				t.Errorf("%d taken, %d wait", q.taken, q.waiting)
			}
			q.mu.Unlock()
		}
		if q.taken != 0 || q.waiting != 0 || len(q.held)+len(q.queues)+len(q.order) != 0 {
			t.Errorf("left: %+v", q)
		}
	})
}

package budget

import (
	"math/rand/v2"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// model is what a pool should hold, by the sentences of the package comment.
type model struct {
	pool   *Pool
	shares []*Share
	used   map[*Share]int64
}

func (m *model) check(t *rapid.T) {
	var sum int64
	for s, n := range m.used {
		if s.Used() != n {
			t.Fatalf("a share uses %d and not %d", s.Used(), n)
		}
		sum += n
	}
	if m.pool.Used() != sum || sum > m.pool.Total() {
		t.Fatalf("%d units are taken of %d; the pool counts %d", sum, m.pool.Total(), m.pool.Used())
	}
}

// promised is Σ max(used, part).
func (m *model) promised() (sum int64) {
	for s, n := range m.used {
		sum += max(n, s.part)
	}
	return sum
}

// pick returns one of the shares, nil when there is none.
func (m *model) pick(t *rapid.T) *Share {
	if len(m.shares) == 0 {
		return nil
	}
	return rapid.SampledFrom(m.shares).Draw(t, "share")
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total := rapid.Int64Range(0, 2000).Draw(t, "total")
		m := &model{pool: New(total), used: map[*Share]int64{}}
		t.Repeat(map[string]func(*rapid.T){
			"": m.check,
			"join": func(*rapid.T) {
				s := m.pool.Join()
				m.shares, m.used[s] = append(m.shares, s), 0
			},
			"leave": func(t *rapid.T) {
				s := m.pick(t)
				if s == nil {
					return
				}
				s.Leave()
				m.shares = without(m.shares, s) // what it uses stays in used
			},
			"take": func(t *rapid.T) {
				s, n := m.pick(t), rapid.Int64Range(1, 300).Draw(t, "n")
				if s == nil {
					return
				}
				guaranteed := m.used[s]+n <= s.part && m.promised() <= total
				room := s.Room()
				ok := s.Take(n)
				switch {
				case !ok && guaranteed:
					t.Fatalf("a share that uses %d of its part of %d was refused %d", m.used[s], s.part, n)
				case ok != (n <= room):
					t.Fatalf("taking %d: %v, and the room was %d", n, ok, room)
				case ok:
					m.used[s] += n
				}
			},
			"give": func(t *rapid.T) {
				s := m.pick(t)
				if s == nil {
					return
				}
				n := rapid.Int64Range(0, m.used[s]).Draw(t, "n")
				s.Give(n)
				m.used[s] -= n
			},
		})
		for s, n := range m.used {
			s.Give(n)
			m.used[s] = 0
		}
		m.check(t)
		if b := m.pool.borrowed.Load(); b != 0 {
			t.Fatalf("%d units stay borrowed after all was given back", b)
		}
	})
}

func without(all []*Share, s *Share) []*Share {
	var rest []*Share
	for _, o := range all {
		if o != s {
			rest = append(rest, o)
		}
	}
	return rest
}

func fill(s *Share) (n int64) {
	for s.Take(1) {
		n++
	}
	return n
}

// However many pods take all that they get, the next one still gets its part.
// After a few it gets more than that.
func TestGreedyPodsLeaveRoom(t *testing.T) {
	const total = 32_000
	for greedy := range 12 {
		p := New(total)
		for range greedy {
			fill(p.Join())
		}
		late := fill(p.Join())
		if part := int64(total / 2 / minParts); late < part || late == part && greedy < 6 {
			t.Errorf("after %d greedy pods the next one gets %d; its part is %d", greedy, late, part)
		}
		if p.Used() > total {
			t.Errorf("%d greedy pods: %d units of %d", greedy, p.Used(), total)
		}
	}
}

func TestOneGreedyPodGetsMostOfWhatIsLent(t *testing.T) {
	p := New(32_000)
	s := p.Join()
	if got := fill(s); got != 1000+12_800 {
		t.Errorf("a pod alone gets %d units, not its part of 1,000 and four fifths of 16,000", got)
	}
	if p.Refused() != 1 {
		t.Errorf("%d refusals were counted", p.Refused())
	}
}

func TestNoShareIsWithoutBound(t *testing.T) {
	var s *Share
	if !s.Take(1<<40) || s.Used() != 0 {
		t.Error("the nil share is bounded")
	}
	s.Give(5)
	s.Leave()
}

func TestConcurrent(t *testing.T) {
	p := New(1000)
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			s := p.Join()
			var n int64
			for range 2000 {
				if k := rand.Int64N(20); rand.IntN(2) == 0 && s.Take(k) {
					n += k
				} else if n > 0 {
					k = rand.Int64N(n) + 1
					s.Give(k)
					n -= k
				}
				if p.Used() > p.Total() {
					t.Error("more is taken than there is")
				}
			}
			s.Give(n)
			s.Leave()
		})
	}
	wg.Wait()
	if p.Used() != 0 || p.borrowed.Load() != 0 {
		t.Errorf("%d units stay used, %d borrowed", p.Used(), p.borrowed.Load())
	}
}

func BenchmarkTakeGive(b *testing.B) {
	p := New(1 << 20)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		s := p.Join()
		for pb.Next() {
			s.Take(1)
			s.Give(1)
		}
	})
}

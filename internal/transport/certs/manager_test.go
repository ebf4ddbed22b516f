package certs

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/transport/mtls"
)

func id(name string) identity.Identity {
	return identity.Identity{TrustDomain: "cluster.local", Namespace: "ns", ServiceAccount: name}
}

// script is a CA whose behaviour a test controls.
type script struct {
	mu    sync.Mutex
	fake  *FakeSigner
	err   error         // fail with
	delay time.Duration // before answering
	hold  chan struct{} // when set, answer only after it is closed
	calls []call
	now   int // calls under way
	peak  int
	extra string // appended to the roots
}

type call struct {
	id identity.Identity
	at time.Time
}

func (s *script) Sign(ctx context.Context, id identity.Identity, csr []byte, ttl time.Duration) ([]string, error) {
	s.mu.Lock()
	s.calls = append(s.calls, call{id, time.Now()})
	s.now++
	s.peak = max(s.peak, s.now)
	delay, hold := s.delay, s.hold
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.now--
	}()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s.mu.Lock()
	err, extra := s.err, s.extra
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	chain, err := s.fake.Sign(ctx, id, csr, ttl)
	if err == nil {
		chain[len(chain)-1] += extra
	}
	return chain, err
}

func (s *script) set(f func(*script)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *script) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

func (s *script) order() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, c := range s.calls {
		names = append(names, c.id.ServiceAccount)
	}
	return names
}

// bubble runs a test in virtual time.
func bubble(t *testing.T, conf Config, f func(t *testing.T, m *Manager, s *script)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fake, err := NewFakeSigner()
		if err != nil {
			t.Fatal(err)
		}
		s := &script{fake: fake}
		conf.Sign = s
		m := NewManager(conf)
		defer m.Close()
		f(t, m, s)
	})
}

func TestGet(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, m *Manager, s *script) {
		s.delay = time.Second
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if b, err := m.Get(t.Context(), id("a")); err != nil || b.Identity != id("a") {
					t.Error(b, err)
				}
			})
		}
		wg.Wait()
		if s.count() != 1 {
			t.Errorf("%d fetches for one identity", s.count())
		}
		b, err := m.Get(t.Context(), id("a"))
		if err != nil || b != m.Current(id("a")) {
			t.Error("the second time", err)
		}
		if m.Current(id("b")) != nil {
			t.Error("a certificate for somebody unknown")
		}
	})
}

// TestPriorities: who waits goes first, then who will need one, then who has
// one; in order of arrival among equals.
func TestPriorities(t *testing.T) {
	bubble(t, Config{Parallel: 1}, func(t *testing.T, m *Manager, s *script) {
		hold := make(chan struct{})
		s.hold = hold
		m.Hold(id("first"), Warmup)
		synctest.Wait()
		m.Hold(id("b1"), Background)
		m.Hold(id("w1"), Warmup)
		m.Hold(id("raised"), Background)
		m.Hold(id("w2"), Warmup)
		gone := m.Hold(id("gone"), Warmup)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = m.Get(t.Context(), id("raised")) })
		synctest.Wait()
		wg.Go(func() { _, _ = m.Get(t.Context(), id("r2")) })
		synctest.Wait()
		gone()
		close(hold)
		wg.Wait()
		synctest.Wait()
		if got, want := s.order(), []string{"first", "raised", "r2", "w1", "w2", "b1"}; !slices.Equal(got, want) {
			t.Errorf("fetched %v, want %v", got, want)
		}
	})
}

func TestParallel(t *testing.T) {
	bubble(t, Config{Retain: -1}, func(t *testing.T, m *Manager, s *script) {
		s.hold = make(chan struct{})
		for _, n := range strings.Split("abcdefghijkl", "") {
			m.Hold(id(n), Warmup)
		}
		synctest.Wait()
		if s.count() != 7 {
			t.Errorf("%d fetches at once, want 7 and a place for those in a hurry", s.count())
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, n := range []string{"x", "y"} {
			wg.Go(func() {
				if _, err := m.Get(ctx, id(n)); !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if s.count() != 8 {
			t.Errorf("%d fetches at once, want 8", s.count())
		}
		cancel()
		wg.Wait()
		s.mu.Lock()
		close(s.hold)
		s.mu.Unlock()
		synctest.Wait()
		// x was under way and y had not begun when their waiters left.
		if s.count() != 13 || s.peak != 8 {
			t.Errorf("%d fetches, at most %d at once", s.count(), s.peak)
		}
	})
}

func TestRenewal(t *testing.T) {
	bubble(t, Config{TTL: 24 * time.Hour}, func(t *testing.T, m *Manager, s *script) {
		m.Hold(id("a"), Warmup)
		synctest.Wait()
		first := m.Current(id("a"))
		time.Sleep(10 * time.Hour)
		if m.Current(id("a")) != first {
			t.Error("renewed before half its life")
		}
		time.Sleep(4 * time.Hour)
		synctest.Wait()
		if m.Current(id("a")) == first || s.count() != 2 {
			t.Errorf("not renewed after half its life, %d fetches", s.count())
		}
	})
}

func TestRelease(t *testing.T) {
	bubble(t, Config{Retain: time.Minute}, func(t *testing.T, m *Manager, s *script) {
		one, two := m.Hold(id("a"), Warmup), m.Hold(id("a"), Warmup)
		synctest.Wait()
		one()
		one()
		time.Sleep(time.Hour)
		if m.Current(id("a")) == nil {
			t.Fatal("forgotten while held")
		}
		two()
		time.Sleep(30 * time.Second)
		three := m.Hold(id("a"), Warmup)
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if n := s.count(); n < 2 || n > 4 || m.Current(id("a")) == nil {
			t.Errorf("%d fetches: a certificate held again must be kept, and renewed", n)
		}
		three()
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if len(m.States()) != 0 {
			t.Errorf("not forgotten: %v", m.States())
		}
		n := s.count()
		time.Sleep(100 * time.Hour)
		if s.count() != n {
			t.Error("fetched for nobody")
		}
	})
}

func TestFailures(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, m *Manager, s *script) {
		s.err = errors.New("CA is away")
		m.Hold(id("a"), Warmup)
		time.Sleep(time.Hour)
		synctest.Wait()
		// 1+2+4+…+128 s, then every 150 s, ±20 %.
		if n := s.count(); n < 8+15 || n > 8+32 {
			t.Errorf("%d attempts in an hour", n)
		}
		if st := m.States()[0].State; st != "Unavailable: CA is away" {
			t.Errorf("state %q", st)
		}
		// A connection does not wait for the end of the back-off.
		began, n := time.Now(), s.count()
		_, err := m.Get(t.Context(), id("a"))
		var re *reason.Error
		if !errors.As(err, &re) || re.Reason != reason.CertificateUnavailable || !strings.Contains(err.Error(), "CA is away") {
			t.Errorf("%v", err)
		}
		if took := time.Since(began); took > firstRetry || s.count() != n+1 {
			t.Errorf("took %s and %d attempts", took, s.count()-n)
		}
		// But many of them are no attack on the CA.
		n = s.count()
		for range 100 {
			began := time.Now()
			_, err := m.Get(t.Context(), id("a"))
			if took := time.Since(began); err == nil || took > firstRetry {
				t.Fatalf("%v after %s", err, took)
			}
		}
		if s.count() != n+100 || time.Since(began) < 100*firstRetry {
			t.Errorf("%d attempts in %s", s.count()-n, time.Since(began))
		}
		s.set(func(s *script) { s.err = nil })
		time.Sleep(time.Second) // back-off of a second applies
		if _, err := m.Get(t.Context(), id("a")); err != nil {
			t.Error(err)
		}
	})
}

// TestUnheldFailures: the bound also holds for who is not held.
func TestUnheldFailures(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, m *Manager, s *script) {
		s.err = errors.New("CA is away")
		began := time.Now()
		for range 20 {
			if _, err := m.Get(t.Context(), id("a")); err == nil {
				t.Fatal("succeeded")
			}
		}
		if time.Since(began) < 19*firstRetry*4/5 { // the first waits are spread by 20 %
			t.Errorf("%d attempts in %s", s.count(), time.Since(began))
		}
	})
}

func TestSlowCA(t *testing.T) {
	bubble(t, Config{Timeout: 10 * time.Second}, func(t *testing.T, m *Manager, s *script) {
		s.hold = make(chan struct{})
		began := time.Now()
		_, err := m.Get(t.Context(), id("a"))
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != 10*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

func TestClose(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, m *Manager, s *script) {
		s.hold = make(chan struct{})
		release := m.Hold(id("b"), Warmup)
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := m.Get(t.Context(), id("a")); err == nil {
				t.Error("succeeded")
			}
		})
		synctest.Wait()
		m.Close()
		wg.Wait()
		release()
		if _, err := m.Get(t.Context(), id("c")); !errors.Is(err, errClosed) {
			t.Error(err)
		}
		m.Close()
	})
}

// TestWrongAnswers: what the CA sends is not believed.
func TestWrongAnswers(t *testing.T) {
	fake, err := NewFakeSigner()
	if err != nil {
		t.Fatal(err)
	}
	for name, sign := range map[string]signFunc{
		"somebody else": func(ctx context.Context, _ identity.Identity, csr []byte, ttl time.Duration) ([]string, error) {
			return fake.Sign(ctx, id("b"), csr, ttl)
		},
		"expired": func(ctx context.Context, id identity.Identity, csr []byte, _ time.Duration) ([]string, error) {
			return fake.Sign(ctx, id, csr, -time.Second)
		},
		"nothing": func(context.Context, identity.Identity, []byte, time.Duration) ([]string, error) { return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			m := NewManager(Config{Sign: sign})
			defer m.Close()
			if _, err := m.Get(t.Context(), id("a")); err == nil {
				t.Error("accepted")
			}
		})
	}
}

type signFunc func(context.Context, identity.Identity, []byte, time.Duration) ([]string, error)

func (f signFunc) Sign(ctx context.Context, id identity.Identity, csr []byte, ttl time.Duration) ([]string, error) {
	return f(ctx, id, csr, ttl)
}

func TestLearnRoots(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, m *Manager, s *script) {
		other, err := NewFakeSigner()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Get(t.Context(), id("old")); err != nil {
			t.Fatal(err)
		}
		s.set(func(s *script) { s.extra = string(encode(other.Root())) })
		if _, err := m.Get(t.Context(), id("new")); err != nil {
			t.Fatal(err)
		}
		old := m.Current(id("old"))
		if roots, _ := mtls.ParseCertificates(old.RootsPEM); len(roots) != 2 {
			t.Errorf("%d roots", len(roots))
		}
		if s.count() != 2 {
			t.Errorf("%d fetches", s.count())
		}
		// A CA that has not heard of it does not take it away.
		s.set(func(s *script) { s.extra = "" })
		if _, err := m.Get(t.Context(), id("third")); err != nil || m.Current(id("old")) != old {
			t.Error("root unlearned", err)
		}
	})
}

func TestStates(t *testing.T) {
	bubble(t, Config{}, func(t *testing.T, m *Manager, s *script) {
		if _, err := m.Get(t.Context(), id("b")); err != nil {
			t.Fatal(err)
		}
		s.set(func(s *script) { s.hold = make(chan struct{}) })
		m.Hold(id("a"), Warmup)
		states := m.States()
		if len(states) != 2 || states[0].Identity != id("a").String() || states[0].State != "Initializing" || states[1].State != "Available" {
			t.Fatalf("%+v", states)
		}
		text, err := json.Marshal(states)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			`{"identity":"spiffe://cluster.local/ns/ns/sa/a","state":"Initializing","certChain":[],"rootCerts":[]}`,
			`"certChain":[{"pem":"LS0tLS1CRUdJTi`, `"rootCerts":[{"pem":"LS0tLS1CRUdJTi`,
			`"serialNumber":"1","validFrom":"1999-12-31T23:00:00Z","expirationTime":"2010-01-01T00:00:00Z"`,
		} {
			if !strings.Contains(string(text), want) {
				t.Errorf("lacks %s:\n%s", want, text)
			}
		}
	})
}

// TestYear lives through a simulated year in which the CA is away a tenth of
// the time, for minutes or for days. At every moment: nothing expired is
// served; what is valid is served; and after an outage everything is well
// within the longest back-off.
func TestYear(t *testing.T) {
	const step = 5 * time.Minute
	bubble(t, Config{TTL: 24 * time.Hour}, func(t *testing.T, m *Manager, s *script) {
		rnd := rand.New(rand.NewPCG(1, 2))
		ids := []identity.Identity{id("a"), id("b")}
		best := make(map[identity.Identity]*mtls.Bundle)
		for _, i := range ids {
			m.Hold(i, Warmup)
		}
		end := time.Now().AddDate(1, 0, 0)
		change := time.Now().Add(time.Hour)
		var restored time.Time
		var away, without, checks int
		for time.Now().Before(end) {
			time.Sleep(step)
			synctest.Wait()
			now := time.Now()
			for _, i := range ids {
				checks++
				b := m.Current(i)
				if b != nil && !now.Before(b.Cert.Leaf.NotAfter) {
					t.Fatalf("%s: expired certificate of %s served", now, i)
				}
				if last := best[i]; b == nil && last != nil && now.Before(last.NotAfter) {
					t.Fatalf("%s: valid certificate of %s dropped", now, i)
				}
				if b == nil {
					without++
					if s.err == nil && now.Sub(restored) > maxRetry*6/5+step {
						t.Fatalf("%s: %s is still without a certificate, CA back since %s", now, i, restored)
					}
					continue
				}
				best[i] = b
			}
			if now.Before(change) {
				continue
			}
			s.set(func(s *script) {
				if s.err == nil {
					s.err = errors.New("CA is away")
					away++
					change = now.Add(time.Duration(rnd.ExpFloat64() * float64(4*time.Hour)))
					if away%50 == 0 {
						change = now.Add(40 * time.Hour) // longer than any certificate lives
					}
				} else {
					s.err, restored = nil, now
					change = now.Add(time.Duration(rnd.ExpFloat64() * float64(36*time.Hour)))
				}
			})
		}
		t.Logf("%d outages, %d of %d checks without a certificate, %d fetches", away, without, checks, s.count())
		if away < 100 || without == 0 {
			t.Error("the year was too quiet to prove anything")
		}
	})
}

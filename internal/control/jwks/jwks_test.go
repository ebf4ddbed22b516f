package jwks

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// server is a source that tests change.
type server struct {
	mu     sync.Mutex
	keys   string
	err    error
	hang   bool
	asked  map[Source]int
	now    int
	most   int
	states map[Source]*State
}

func newServer() *server { return &server{asked: map[Source]int{}, states: map[Source]*State{}} }

func (s *server) set(keys string, err error, hang bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys, s.err, s.hang = keys, err, hang
}

func (s *server) fetch(ctx context.Context, src Source) (string, int, error) {
	s.mu.Lock()
	s.asked[src]++
	s.now++
	s.most = max(s.most, s.now)
	keys, err, hang := s.keys, s.err, s.hang
	s.mu.Unlock()
	if hang {
		<-ctx.Done()
		err = ctx.Err()
	}
	s.mu.Lock()
	s.now--
	s.mu.Unlock()
	return keys, len(keys), err
}

func (s *server) report(src Source, st *State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.states[src] = st
}

func (s *server) state(src Source) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.states[src]; st != nil {
		return st.Keys + "|" + st.Problem
	}
	return "nothing"
}

func (s *server) count(src Source) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[src]
}

// run runs a Fetcher in virtual time.
func run(t *testing.T, s *server, test func(t *testing.T, f *Fetcher)) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Config{Fetch: s.fetch})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { f.Run(ctx, s.report); close(done) }()
		test(t, f)
		cancel()
		<-done
	})
}

// TestRefresh: keys are fetched again, the last good ones stay, and none is made up.
func TestRefresh(t *testing.T) {
	s, src := newServer(), Source{Namespace: "a", URI: "http://x"}
	s.set("", errors.New("down"), false)
	run(t, s, func(t *testing.T, f *Fetcher) {
		expect := func(when, want string) {
			t.Helper()
			synctest.Wait()
			if got := s.state(src); got != want {
				t.Errorf("%s: %s, want %s", when, got, want)
			}
		}
		f.Want(src)
		expect("the server is down", "|down")
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if n := s.count(src); n < 8 || n > 20 {
			t.Errorf("%d attempts in ten minutes without keys", n)
		}
		s.set("one", nil, false)
		time.Sleep(2 * time.Minute)
		expect("the server is up", "one|")
		before := s.count(src)
		time.Sleep(15 * time.Minute)
		synctest.Wait()
		if n := s.count(src); n != before {
			t.Errorf("keys are fetched %d times in 15 minutes", n-before)
		}
		s.set("two", nil, false)
		time.Sleep(10 * time.Minute)
		expect("the keys were replaced", "two|")
		s.set("", errors.New("down"), false)
		time.Sleep(25 * time.Minute)
		expect("the server is down again", "two|down")
		s.set("", nil, true)
		time.Sleep(25 * time.Minute)
		expect("the server hangs", "two|no answer within 5s: context deadline exceeded")
		s.set("three", nil, false)
		time.Sleep(25 * time.Minute)
		expect("the server is up again", "three|")
		f.Forget(src)
		expect("no longer wanted", "nothing")
		before = s.count(src)
		time.Sleep(time.Hour)
		if n := s.count(src); n != before {
			t.Errorf("keys of a source that was forgotten are fetched %d times", n-before)
		}
	})
}

// TestShares: a namespace with many sources that hang delays no other, and has a bound.
func TestShares(t *testing.T) {
	s := newServer()
	s.set("k", nil, true)
	run(t, s, func(t *testing.T, f *Fetcher) {
		for n := range maxSourcesEach + 5 {
			f.Want(Source{Namespace: "hog", URI: fmt.Sprint("http://", n)})
		}
		synctest.Wait()
		if s.most != placesEach {
			t.Errorf("%d fetches of one namespace at a time", s.most)
		}
		over := 0
		for _, st := range s.states {
			if st.Problem != "" && st.Keys == "" {
				over++
			}
		}
		if over != 5 {
			t.Errorf("%d sources are beyond the bound", over)
		}
		other := Source{Namespace: "other", URI: "http://x"}
		s.set("k", nil, false)
		f.Want(other)
		synctest.Wait()
		if got := s.state(other); got != "k|" {
			t.Errorf("another namespace has to wait: %s", got)
		}
		// What becomes free is used.
		for n := range 5 {
			f.Forget(Source{Namespace: "hog", URI: fmt.Sprint("http://", n)})
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		f.signal()
		time.Sleep(time.Hour)
		synctest.Wait()
		for src, st := range s.states {
			if st != nil && st.Problem != "" {
				t.Errorf("%s: %s", src, st.Problem)
			}
		}
	})
}

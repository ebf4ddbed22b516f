package logging

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// stuck is a reader that takes nothing until it is released.
type stuck struct {
	mu      sync.Mutex
	release chan struct{}
	got     bytes.Buffer
	writes  int
}

func (s *stuck) Write(p []byte) (int, error) {
	if s.release != nil {
		<-s.release
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	return s.got.Write(p)
}

func TestRecordsLeaveTogetherAndInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &stuck{}
		a := NewAsync(w, nil)
		var want strings.Builder
		for i := range 1000 {
			line := fmt.Sprintf("record %d\n", i)
			want.WriteString(line)
			if n, err := a.Write([]byte(line)); n != len(line) || err != nil {
				t.Fatal(n, err)
			}
		}
		time.Sleep(2 * gather)
		synctest.Wait()
		if w.got.String() != want.String() || w.writes != 1 {
			t.Errorf("%d bytes in %d writes, want %d in one", w.got.Len(), w.writes, want.Len())
		}
		_, _ = a.Write([]byte("last\n"))
		a.Close(time.Second)
		if !strings.HasSuffix(w.got.String(), "last\n") {
			t.Error("Close lost what was pending")
		}
		_, _ = a.Write([]byte("late\n"))
		if strings.Contains(w.got.String(), "late") {
			t.Error("a record was written after Close")
		}
	})
}

func TestASlowReaderBlocksNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &stuck{release: make(chan struct{})}
		var lost uint64
		a := NewAsync(w, func(n uint64) { lost += n })
		line := bytes.Repeat([]byte("x"), 1<<10)
		_, _ = a.Write(line)
		time.Sleep(2 * gather) // the goroutine is stuck with it
		const more = 100
		for range maxGathered/len(line) + more {
			_, _ = a.Write(line) // would deadlock if it waited
		}
		close(w.release)
		time.Sleep(4 * gather)
		synctest.Wait()
		if lost != more || w.got.Len() != maxGathered+len(line) {
			t.Errorf("%d records lost, %d bytes written; want %d and %d", lost, w.got.Len(), more, maxGathered+len(line))
		}
		a.Close(time.Second)
	})
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &stuck{release: make(chan struct{})}
		a := NewAsync(w, nil)
		_, _ = a.Write([]byte("x"))
		began := time.Now()
		a.Close(time.Second)
		if d := time.Since(began); d != time.Second {
			t.Errorf("Close took %s", d)
		}
		close(w.release)
		<-a.done
	})
}

func TestQuoting(t *testing.T) {
	for _, s := range []string{"", "plain", `with "quotes"`, `back\slash`, "tab\t", "nul\x00", "é", "\x7f", "\xff", strings.Repeat("a", 100)} {
		if got, want := string(appendQuoted(nil, s)), fmt.Sprintf("%q", s); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

func BenchmarkAccessLine(b *testing.B) {
	l, err := New(discard{}, Plain, "info")
	if err != nil {
		b.Fatal(err)
	}
	log := l.Logger("access")
	b.ReportAllocs()
	for b.Loop() {
		log.Info("connection complete", "src.workload", "client-7d9f", "src.namespace", "shop",
			"src.identity", "spiffe://cluster.local/ns/shop/sa/client", "dst.service", "server.shop.svc.cluster.local", "bytes_sent", 7)
	}
}

// A busy log keeps its memory, and one that was busy once gives it back.
func TestMemoryOfRecordsFollowsTheirNumber(t *testing.T) {
	for _, c := range []struct {
		length, size int
		keep         bool
	}{{0, keptGathered, true}, {100, 1 << 20, false}, {1 << 17, 1 << 20, true}, {1<<17 - 1, 1 << 20, false}, {maxGathered, maxGathered, true}} {
		b := kept(make([]byte, c.length, c.size))
		if (b != nil) != c.keep || len(b) != 0 {
			t.Errorf("%d of %d bytes: %d of %d are kept", c.length, c.size, len(b), cap(b))
		}
	}
}

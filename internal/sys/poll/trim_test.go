package poll

import "testing"

type trimmed struct{ n int }

func (t *trimmed) Trim() { t.n++ }

// TestTrim: a loop drops what it holds for reuse, between two turns, and makes it anew.
func TestTrim(t *testing.T) {
	g, err := NewGroup(1)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	l := g.Loop(0)
	on := func(f func()) {
		t.Helper()
		done := make(chan struct{})
		l.Post(func() { defer close(done); f() })
		<-done
	}
	v := &trimmed{}
	on(func() {
		l.Value(v, func() any { return v })
		q := Queue{}
		q.Append(l, make([]byte, 100<<10))
		q.Discard(l, q.Len())
		p, err := l.Pipe()
		if err != nil {
			t.Error(err)
		}
		l.PutPipe(p)
		b := l.Buffer()
		b[0] = 7
		l.Trim() // takes effect when the handlers of a turn are over
		l.AtTurnEnd(func() {
			if b[0] != 7 || len(l.pipes) != 1 {
				t.Error("memory goes within a turn")
			}
		})
	})
	on(func() {})
	on(func() {
		if l.buffer != nil || l.chunks[0].head != nil || len(l.pipes) != 0 || l.piped != 0 || v.n != 1 {
			t.Errorf("%d bytes, %d pipes of %d, %d calls are left", len(l.buffer), len(l.pipes), l.piped, v.n)
		}
		if len(l.Buffer()) != BufferSize {
			t.Error("there is no buffer")
		}
	})
	g.Watch()
	on(func() {}) // after Watch has taken effect, at the latest
	on(func() {})
	<-g.Worked()
	select {
	case <-g.Worked():
		t.Error("a turn counts without Watch")
	default:
	}
	if g.Turns() == 0 {
		t.Error("there were no turns")
	}
}

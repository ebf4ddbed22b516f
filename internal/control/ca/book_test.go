package ca

import (
	"errors"
	"log/slog"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/ca/rotation"
)

// memory is a Store that replicas share.
type memory struct {
	rec     Record
	version int
	err     error  // of every save, when set
	before  func() // a save
	saves   int
}

func (m *memory) Load() (Record, string, error) { return m.rec, strconv.Itoa(m.version), nil }

func (m *memory) Save(rec Record, version string) (string, error) {
	m.saves++
	if m.before != nil {
		m.before()
	}
	if m.err != nil {
		return "", m.err
	}
	if version != strconv.Itoa(m.version) {
		return "", ErrConflict
	}
	m.rec = rec
	m.version++
	return strconv.Itoa(m.version), nil
}

func (*memory) Publish([]byte) error     { return nil }
func (*memory) Changed() <-chan struct{} { return nil }
func (*memory) Close() error             { return nil }
func (*memory) String() string           { return "memory" }

// replica is a book in m; inForce is what was put in force last.
func replica(t *testing.T, m *memory, shared bool) (b *book, inForce *rotation.State) {
	t.Helper()
	inForce = &rotation.State{}
	b = &book{
		store: m, shared: shared, logger: slog.New(slog.DiscardHandler),
		open: func(rotation.State) error { return nil },
	}
	b.inForce = func() []byte { *inForce = b.state; return nil }
	if err := b.reload(); err != nil {
		t.Fatal(err)
	}
	return b, inForce
}

// sign lets a generation sign at once.
func sign(b *book, id string) func() error {
	return func() error {
		st := b.state
		st.Current = &rotation.Generation{SignerID: id}
		b.set(st)
		return nil
	}
}

func TestBookConflict(t *testing.T) {
	m := &memory{}
	a, _ := replica(t, m, true)
	b, inForce := replica(t, m, true)
	if err := a.change(sign(a, "a")); err != nil {
		t.Fatal(err)
	}
	// b is second: its change is made again, on what a left.
	var seen []string
	err := b.change(func() error {
		id := ""
		if b.state.Current != nil {
			id = b.state.Current.SignerID
		}
		seen = append(seen, id)
		return sign(b, "b")()
	})
	if err != nil || len(seen) != 2 || seen[1] != "a" || inForce.Current.SignerID != "b" {
		t.Errorf("%v, saw %q, %+v", err, seen, inForce)
	}
	// Somebody is always first.
	m.before = func() { m.version++ }
	m.saves = 0
	if err := b.change(sign(b, "c")); !errors.Is(err, ErrConflict) || m.saves != maxConflicts || inForce.Current.SignerID != "b" {
		t.Errorf("%v after %d saves, %+v", err, m.saves, inForce)
	}
}

// TestBookUnsaved: what could not be saved is in force only where nobody else
// could contradict it.
func TestBookUnsaved(t *testing.T) {
	for _, shared := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			m := &memory{}
			b, inForce := replica(t, m, shared)
			if err := b.change(sign(b, "first")); err != nil {
				t.Fatal(err)
			}
			m.err = errors.New("disk full")
			want := map[bool]string{false: "second", true: "first"}[shared]
			for range 3 {
				if err := b.change(sign(b, "second")); !errors.Is(err, m.err) || inForce.Current.SignerID != want {
					t.Errorf("shared %t: %v, %+v", shared, err, inForce)
				}
			}
			// A store that others use as well is left alone for a while.
			if wantSaves := map[bool]int{false: 4, true: 2}[shared]; m.saves != wantSaves {
				t.Errorf("shared %t: %d saves", shared, m.saves)
			}
			m.err = nil
			time.Sleep(storeRetry)
			if err := b.change(sign(b, "second")); err != nil || inForce.Current.SignerID != "second" || !b.saved {
				t.Errorf("shared %t: %v, %+v", shared, err, inForce)
			}
		})
	}
}

// TestBookGone: the state of a mesh that runs is not given up because somebody
// has removed it from the store.
func TestBookGone(t *testing.T) {
	m := &memory{}
	b, inForce := replica(t, m, true)
	if err := b.change(sign(b, "a")); err != nil {
		t.Fatal(err)
	}
	m.rec = Record{}
	m.version++
	if err := b.reload(); err != nil || b.saved || inForce.Current.SignerID != "a" {
		t.Fatalf("%v, saved %t, %+v", err, b.saved, inForce)
	}
	if err := b.change(func() error { return nil }); err != nil || m.rec.State == nil {
		t.Errorf("%v, %q", err, m.rec.State)
	}
}

// TestBookRefused: a change that is refused half-way leaves nothing.
func TestBookRefused(t *testing.T) {
	m := &memory{}
	b, inForce := replica(t, m, true)
	if err := b.change(sign(b, "a")); err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	err := b.change(func() error { return errors.Join(sign(b, "b")(), no) })
	if !errors.Is(err, no) || b.state.Current.SignerID != "a" || inForce.Current.SignerID != "a" || m.saves != 1 {
		t.Errorf("%v, %+v, %d saves", err, b.state, m.saves)
	}
	b.open = func(rotation.State) error { return no }
	m.version++
	if err := b.reload(); !errors.Is(err, no) || b.version == strconv.Itoa(m.version) {
		t.Errorf("took a state that cannot be used: %v", err)
	}
}

package ca

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/ca/rotation"
)

const (
	// storeRetry is how long a store that failed is left alone.
	storeRetry = 10 * time.Second
	// maxConflicts is how often a change is tried again after other replicas.
	maxConflicts = 5
)

// book is the state of an authority in step with its Store: what changes is
// saved before it is in force, and a change that came second is made again on
// what the first one left.
type book struct {
	store  Store
	shared bool // the store has other users
	logger *slog.Logger
	// open is shown every state that is read; one that it refuses is not taken.
	open func(rotation.State) error
	// inForce is called when state may have become another, and returns the
	// trust bundle of it.
	inForce func() []byte

	state   rotation.State // being changed
	stored  rotation.State // in a shared store: what the store had last
	version string         // of stored
	saved   bool           // state is in the store
	foreign Record         // a root of another program in the store, and nothing else
	failed  error          // of the last save
	retryAt time.Time      // when the store is tried again
}

// set makes st the state, which is to be saved.
func (b *book) set(st rotation.State) { b.state, b.saved = st, false }

// reload takes what the store has for the truth.
func (b *book) reload() error {
	rec, version, err := b.store.Load()
	if err != nil {
		return err
	}
	if rec.State == nil && b.state.Current != nil {
		// The mesh trusts what is in force here. Losing it would be the end of
		// every connection.
		b.logger.Error("the CA's state is gone; writing it again", "store", b.store.String())
		b.version, b.saved = version, false
		return nil
	}
	st := rotation.State{Version: stateVersion}
	if rec.State != nil {
		if st, err = decodeState(rec.State, b.store.String()); err != nil {
			return err
		}
	}
	if err := b.open(st); err != nil {
		return fmt.Errorf("self-signed root in %s: %w", b.store, err)
	}
	b.foreign = Record{}
	if rec.State == nil {
		b.foreign = rec
	}
	b.state, b.stored, b.version, b.saved = st, st, version, true
	b.inForce()
	return nil
}

// change lets f change the state, saves that and puts it in force. When another
// replica was first, f is asked again, about theirs.
func (b *book) change(f func() error) error {
	for range maxConflicts {
		if err := f(); err != nil {
			b.revert()
			return err
		}
		err := b.commit()
		if !errors.Is(err, ErrConflict) {
			return err
		}
		if err := b.reload(); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w, %d times in a row", ErrConflict, maxConflicts)
}

// revert forgets what is not in the store, when others would not know of it.
func (b *book) revert() {
	if b.shared && b.stored.Current != nil {
		b.state, b.saved = b.stored, true
	}
}

// commit saves the state and then puts it in force: nothing is handed out that
// a crash could make the authority forget.
func (b *book) commit() error {
	if !b.saved {
		if err := b.save(time.Now()); err != nil {
			if b.shared {
				b.revert()
			} else {
				b.inForce()
			}
			return err
		}
	}
	return b.store.Publish(b.inForce())
}

func (b *book) save(now time.Time) error {
	if b.shared && now.Before(b.retryAt) {
		return b.failed
	}
	rec, err := record(b.state)
	if err != nil {
		return err
	}
	version, err := b.store.Save(rec, b.version)
	if err != nil {
		if !errors.Is(err, ErrConflict) {
			b.failed, b.retryAt = err, now.Add(storeRetry)
		}
		return err
	}
	b.version, b.stored, b.saved, b.foreign = version, b.state, true, Record{}
	return nil
}

package ca

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/ambit-mesh/ambit/internal/control/ca/rotation"
)

// Files of the state directory.
const (
	stateFile = "ca-state.json"
	rootFile  = "root-cert.pem"
	lockFile  = "ca.lock"
)

// stateVersion is what this program writes and reads.
const stateVersion = 1

// Record is what a Store keeps of an authority.
type Record struct {
	// State is the authority's own, and opaque to the store. Nil when there is
	// none yet.
	State []byte
	// Cert and Key are PEM of the self-signed root that signs; empty while the
	// CA is plugged in. A record that has these and no State is another
	// program's root, which the authority adopts.
	Cert, Key []byte
	// Roots is PEM of all roots to trust.
	Roots []byte
}

// ErrConflict matches the error of a Save that came too late: somebody else
// has saved since the version it was made from.
var ErrConflict = errors.New("the CA's state was changed by somebody else")

// ErrUnavailable matches the error of a Store or a PluginSource that could not
// be asked, or did not answer: what it has is not known, and may be in a while.
var ErrUnavailable = errors.New("cannot be read or written now")

// ErrNotYet matches the error of an authority that may not sign yet, because
// another replica does with a key that this replica cannot load.
var ErrNotYet = errors.New("another replica signs with a key that this replica cannot load")

// Store keeps the state of an authority where a restart finds it. A store of
// several replicas makes one sequence of their saves, by versions. Calls are
// bounded in time; the authority makes one at a time.
type Store interface {
	// Load returns the record and its version; the zero Record when there is
	// none.
	Load() (rec Record, version string, err error)
	// Save replaces the record of that version, whole or not at all, and
	// returns the version of the new one. The error matches ErrConflict when
	// the version is not the present one.
	Save(rec Record, version string) (newVersion string, err error)
	// Publish is called often with the trust bundle that is in force, for
	// stores that keep a copy of it for others.
	Publish(roots []byte) error
	// Changed has a value after somebody else may have saved; nil for a store
	// that nobody else uses.
	Changed() <-chan struct{}
	Close() error
	// String says where the record is, for people.
	String() string
}

// directory keeps the record in a directory that one process uses at a time.
// One file holds all of it, so that a crash can never separate a key from its
// certificate.
type directory struct {
	dir  string
	lock *os.File
}

// openDirectory locks the directory for this process: two authorities on one
// state would undo each other's rotations.
func openDirectory(dir string) (*directory, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // others read root-cert.pem in it; keys are 0600
		return nil, fmt.Errorf("state directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("state directory %s is in use by another process (%w): give each ambitd one of its own", dir, err)
	}
	return &directory{dir: dir, lock: lock}, nil
}

func (s *directory) String() string { return filepath.Join(s.dir, stateFile) }

func (s *directory) Close() error { return s.lock.Close() }

func (s *directory) Changed() <-chan struct{} { return nil }

func (s *directory) Load() (rec Record, version string, err error) {
	rec.State, err = os.ReadFile(filepath.Join(s.dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Record{}, "", nil
	}
	if err != nil {
		return Record{}, "", fmt.Errorf("CA state: %w", err)
	}
	return rec, "", nil
}

func (s *directory) Save(rec Record, _ string) (version string, err error) {
	if err := writeAtomic(s.dir, stateFile, rec.State, 0o600); err != nil {
		return "", fmt.Errorf("CA state: %w", err)
	}
	return "", nil
}

// Publish writes the trust bundle for clients of the control plane.
func (s *directory) Publish(text []byte) error {
	if old, err := os.ReadFile(filepath.Join(s.dir, rootFile)); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := writeAtomic(s.dir, rootFile, text, 0o644); err != nil {
		return fmt.Errorf("trust bundle: %w", err)
	}
	return nil
}

// decodeState reads the State of a record; where is for the error.
func decodeState(text []byte, where string) (rotation.State, error) {
	var st rotation.State
	if err := json.Unmarshal(text, &st); err != nil {
		return rotation.State{}, fmt.Errorf("CA state %s cannot be understood: %w; restore it from a copy, or remove it to begin with a new root", where, err)
	}
	if st.Version != stateVersion {
		return rotation.State{}, fmt.Errorf("CA state %s has version %d, this program knows %d", where, st.Version, stateVersion)
	}
	if st.Current == nil {
		return rotation.State{}, fmt.Errorf("CA state %s names no signer; restore it from a copy, or remove it to begin with a new root", where)
	}
	return st, nil
}

// record is what a Store keeps of a state.
func record(s rotation.State) (Record, error) {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return Record{}, err
	}
	rec := Record{State: append(text, '\n'), Roots: s.Bundle()}
	if s.Current.SelfSigned() {
		rec.Cert, rec.Key = []byte(s.Current.Cert), []byte(s.Current.Key)
	}
	return rec, nil
}

// writeAtomic replaces dir/name: after a crash at any point the file holds
// the old or the new text, whole. The temporary name is fixed, so that a
// crash leaves at most one, which the next write replaces.
func writeAtomic(dir, name string, text []byte, mode os.FileMode) error {
	tmp := filepath.Join(dir, "."+name+".tmp")
	// Not to inherit the mode of what somebody else left there.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(dir, name))
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return syncDir(dir)
}

// syncDir makes a rename survive a power failure.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

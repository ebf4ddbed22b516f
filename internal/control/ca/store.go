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
)

// Files of the state directory.
const (
	stateFile = "ca-state.json"
	rootFile  = "root-cert.pem"
	lockFile  = "ca.lock"
)

// stateVersion is what this program writes and reads.
const stateVersion = 1

// store keeps the authority's state in a directory. One file holds all of it,
// so that a crash can never separate a key from its certificate.
type store struct {
	dir  string
	lock *os.File
}

// openStore locks the directory for this process: two authorities on one
// state would undo each other's rotations.
func openStore(dir string) (*store, error) {
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
	return &store{dir: dir, lock: lock}, nil
}

func (s *store) close() error { return s.lock.Close() }

// load returns the zero state when there is none.
func (s *store) load() (state, error) {
	path := filepath.Join(s.dir, stateFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return state{Version: stateVersion}, nil
	}
	if err != nil {
		return state{}, fmt.Errorf("CA state: %w", err)
	}
	var st state
	if err := json.Unmarshal(text, &st); err != nil {
		return state{}, fmt.Errorf("CA state %s cannot be understood: %w; restore it from a copy, or remove it to begin with a new root", path, err)
	}
	if st.Version != stateVersion {
		return state{}, fmt.Errorf("CA state %s has version %d, this program knows %d", path, st.Version, stateVersion)
	}
	if st.Current == nil {
		return state{}, fmt.Errorf("CA state %s names no signer; restore it from a copy, or remove it to begin with a new root", path)
	}
	return st, nil
}

func (s *store) save(st state) error {
	text, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	if err := writeAtomic(s.dir, stateFile, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("CA state: %w", err)
	}
	return nil
}

// saveBundle writes the trust bundle for clients of the control plane.
func (s *store) saveBundle(text []byte) error {
	if old, err := os.ReadFile(filepath.Join(s.dir, rootFile)); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := writeAtomic(s.dir, rootFile, text, 0o644); err != nil {
		return fmt.Errorf("trust bundle: %w", err)
	}
	return nil
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

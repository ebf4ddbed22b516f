package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Down takes the cluster with a state directory down, in whatever state it is,
// and leaves nothing of it. Without one it does nothing.
func Down(state string) error {
	dir, err := filepath.Abs(state)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("a cluster needs root, also to be taken down")
	}
	d := dirs{dir}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	unlock, err := d.exclusive()
	if err != nil {
		return err
	}
	defer unlock()
	return down(d)
}

// down expects that nobody else brings the cluster up or down. The record goes
// last, so that what was interrupted can be done again.
func down(d dirs) error {
	r, err := readRecord(d)
	if err != nil {
		return err
	}
	if r == nil {
		return emptyOrMissing(d.root)
	}
	for _, name := range d.processNames() {
		if p, up := d.readProcess(name); up {
			err = errors.Join(err, kill(p))
		}
	}
	if err = errors.Join(err, removeCgroup(d.cgroup()), removeNetwork(d)); err != nil {
		return err
	}
	return removeState(d)
}

// emptyOrMissing keeps `down` and `up` away from directories that are not a
// cluster's.
func emptyOrMissing(dir string) error {
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		return fmt.Errorf("%s is not empty, and there is no cluster in it", dir)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func removeState(d dirs) error {
	entries, err := os.ReadDir(d.root)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(d.root, e.Name())
		if path == d.config() {
			continue
		}
		if err := stayOn(d.root, path); err != nil {
			return err
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return errors.Join(os.Remove(d.config()), os.Remove(d.root))
}

// stayOn refuses to remove what is mounted below the state directory: it would
// be somebody else's files.
func stayOn(root, path string) error {
	var want, have unix.Stat_t
	if err := unix.Stat(root, &want); err != nil {
		return err
	}
	return filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		if err := unix.Stat(p, &have); err != nil {
			return err
		}
		if have.Dev != want.Dev {
			return fmt.Errorf("something is mounted on %s: unmount it first", p)
		}
		return nil
	})
}

package file

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// stamp reports whether a file may have changed since it was read.
type stamp struct {
	size    int64
	changed time.Time
}

// reader keeps a state equal to the disk.
type reader struct {
	opts   Options
	state  *state
	stamps map[string]stamp
}

func newReader(opts Options) *reader {
	r := &reader{opts: opts, state: newState(), stamps: map[string]stamp{}}
	r.state.also = opts.Also
	return r
}

// roots lists the directories to read, the status directory last.
func (r *reader) roots() []string {
	roots := make([]string, 0, len(r.opts.ConfigDirs)+1)
	for _, d := range r.opts.ConfigDirs {
		roots = append(roots, filepath.Clean(d))
	}
	if r.opts.StatusDir != "" {
		roots = append(roots, filepath.Clean(r.opts.StatusDir))
	}
	return roots
}

// isOverlay reports whether a path lies in the status directory.
func (r *reader) isOverlay(path string) bool {
	return r.opts.StatusDir != "" && within(filepath.Clean(r.opts.StatusDir), path)
}

func within(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}

// scan compares everything with the disk, and returns the directories there
// are. A directory that cannot be listed keeps the files it had.
func (r *reader) scan() (dirs []string) {
	found := map[string]struct{}{}
	var kept []string
	for _, root := range r.roots() {
		if r.opts.StatusDir != "" && root != filepath.Clean(r.opts.StatusDir) && r.isOverlay(root) {
			continue // a configuration directory inside the status directory is a mistake
		}
		ds, unlisted := r.walk(root, found)
		dirs = append(dirs, ds...)
		kept = append(kept, unlisted...)
	}
	for path := range r.stamps {
		if _, there := found[path]; !there && !underAny(kept, path) {
			r.forget(path)
		}
	}
	for path := range r.state.unread {
		if _, there := found[path]; !there && !underAny(kept, path) {
			delete(r.state.unread, path)
		}
	}
	if len(kept) == 0 {
		r.prune()
	}
	return dirs
}

func underAny(dirs []string, path string) bool {
	for _, d := range dirs {
		if within(d, path) {
			return true
		}
	}
	return false
}

// walk reads the files below a root that changed.
func (r *reader) walk(root string, found map[string]struct{}) (dirs, unlisted []string) {
	// WalkDir does not follow a root that is a symbolic link.
	target, err := filepath.EvalSymlinks(root)
	if err != nil {
		r.state.cannotRead(root, "cannot read the directory: "+reasonOf(err))
		return nil, []string{root}
	}
	_ = filepath.WalkDir(target, func(path string, e fs.DirEntry, err error) error {
		shown := root + strings.TrimPrefix(path, target)
		if err != nil {
			r.state.cannotRead(shown, "cannot read the directory: "+reasonOf(err))
			unlisted = append(unlisted, shown)
			return fs.SkipDir
		}
		if path != target && strings.HasPrefix(e.Name(), ".") {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if e.IsDir() {
			if r.nested(root, shown) {
				return fs.SkipDir
			}
			delete(r.state.unread, shown)
			dirs = append(dirs, shown)
			return nil
		}
		if isManifest(shown) {
			found[shown] = struct{}{}
			r.refresh(shown, false)
		}
		return nil
	})
	return dirs, unlisted
}

// nested reports whether a directory met below a root is the status directory,
// which is read by itself.
func (r *reader) nested(root, dir string) bool {
	return root != dir && r.opts.StatusDir != "" && dir == filepath.Clean(r.opts.StatusDir)
}

func isManifest(path string) bool {
	switch filepath.Ext(path) {
	case ".yaml", ".yml", ".json":
		return !strings.HasPrefix(filepath.Base(path), ".")
	}
	return false
}

// refresh reads a file if it may have changed; always when told so.
func (r *reader) refresh(path string, always bool) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		r.forget(path)
		return
	}
	if err != nil {
		r.state.cannotRead(path, "cannot read the file: "+reasonOf(err))
		return
	}
	if !info.Mode().IsRegular() {
		return // a directory's name may end in .yaml; a pipe would block
	}
	now := stamp{info.Size(), info.ModTime()}
	before, known := r.stamps[path]
	if known && before == now && !always {
		return
	}
	if !known && len(r.stamps) >= r.opts.MaxFiles {
		r.state.cannotRead(path, fmt.Sprintf("not read: there are more than %d files", r.opts.MaxFiles))
		return
	}
	data, err := readBounded(path, r.opts.MaxFileBytes)
	if err != nil {
		r.state.cannotRead(path, "cannot read the file: "+reasonOf(err))
		return
	}
	r.stamps[path] = now
	if len(bytes.TrimSpace(data)) == 0 && r.state.holds(path, r.isOverlay(path)) {
		r.state.cannotRead(path, "the file is empty: its objects stay as they were, because it may be in the middle of being written; remove the file to remove them")
		return
	}
	r.take(path, data)
}

// take gives the content of a file to the state. Of a file that is broken when
// it is first seen, the last good state comes from the process before: a
// restart must not drop a policy because of a typo.
func (r *reader) take(path string, data []byte) {
	overlay := r.isOverlay(path)
	if overlay || r.opts.KeepDir == "" {
		r.state.put(path, overlay, data)
		return
	}
	_, known := r.state.files[path]
	r.state.put(path, false, data)
	if r.state.good(path) {
		r.keep(path, data)
		return
	}
	if known {
		return
	}
	if saved, err := readBounded(r.kept(path), r.opts.MaxFileBytes); err == nil {
		r.state.put(path, false, saved)
		r.state.put(path, false, data)
	}
}

// kept is where the last good content of a file is.
func (r *reader) kept(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(r.opts.KeepDir, hex.EncodeToString(sum[:16]))
}

// keep saves the content of a file with policies, and only those: what else is
// missing after a restart allows nothing.
func (r *reader) keep(path string, data []byte) {
	name := r.kept(path)
	if !r.state.restricts(path) {
		_ = os.Remove(name) // mostly there is none
		return
	}
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, data) {
		return
	}
	if err := errors.Join(os.MkdirAll(r.opts.KeepDir, 0o700), replace(name, data)); err != nil {
		r.opts.Logger.Warn("the last good state of a file could not be kept: a restart would lose it if the file breaks", "file", path, "error", err)
	}
}

// prune removes what was kept of files that are gone.
func (r *reader) prune() {
	if r.opts.KeepDir == "" {
		return
	}
	entries, err := os.ReadDir(r.opts.KeepDir)
	if err != nil {
		return // nothing was kept
	}
	here := make(map[string]struct{}, len(r.stamps))
	for path := range r.stamps {
		here[filepath.Base(r.kept(path))] = struct{}{}
	}
	for _, e := range entries {
		if _, ok := here[e.Name()]; !ok {
			_ = os.Remove(filepath.Join(r.opts.KeepDir, e.Name()))
		}
	}
}

func (r *reader) forget(path string) {
	delete(r.stamps, path)
	r.state.drop(path, r.isOverlay(path))
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("larger than %d bytes; split it", limit)
	}
	return data, err
}

// reasonOf drops the path from an error that is shown beside the path.
func reasonOf(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err.Error()
	}
	return err.Error()
}

package attack

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The programs of these labs inherit a umask that takes nothing away: what is
// closed is closed by the programs.
func init() { syscall.Umask(0) }

// TestOpenSocketsAndFiles: another user of the node looks for a socket that it
// may use, or a file that it may read or write.
func TestOpenSocketsAndFiles(t *testing.T) {
	t.Parallel()
	w := start(t, "")
	st, err := w.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// As the lab's own processes see it: they have mounts of their own.
	root := fmt.Sprintf("/proc/%d/root", st.PID)
	sockets := 0
	err = filepath.WalkDir(filepath.Join(root, w.StateDir()), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // it was temporary
			}
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // it was temporary
		}
		mode := info.Mode()
		switch {
		case mode&fs.ModeSymlink != 0:
		case mode&fs.ModeSocket != 0:
			sockets++
			if mode.Perm() != 0o600 {
				t.Errorf("socket %s has mode %o", path, mode.Perm())
			}
		case mode.Perm()&0o022 != 0 && mode&fs.ModeSticky == 0:
			t.Errorf("%s can be written by other users: mode %o", path, mode.Perm())
		case secret(path) && mode.Perm()&0o077 != 0:
			t.Errorf("%s can be read by other users: mode %o", path, mode.Perm())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// The lab's control socket, and on each node those of the plugin and of ZDS.
	if sockets < 5 {
		t.Errorf("%d sockets were found", sockets)
	}
}

// secret reports whether a file holds a key or a token.
func secret(path string) bool {
	name := filepath.Base(path)
	return strings.Contains(name, "key") || strings.Contains(name, "token") || name == "ca-state.json"
}

package unixsock

import (
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestMode: the umask neither opens nor closes a socket.
func TestMode(t *testing.T) {
	dir := t.TempDir()
	for _, network := range []string{"unix", "unixpacket"} {
		for _, umask := range []int{0, 0o022, 0o777} {
			path := filepath.Join(dir, network)
			was := syscall.Umask(umask)
			l, err := Listen(network, path)
			syscall.Umask(was)
			if err != nil {
				t.Fatal(err)
			}
			st, err := os.Stat(path)
			if err != nil || st.Mode() != fs.ModeSocket|0o600 {
				t.Errorf("%s with umask %o: mode %s, %v", network, umask, st.Mode(), err)
			}
			c, err := net.Dial(network, path)
			if err != nil {
				t.Error(err)
			} else {
				_ = c.Close()
			}
			_ = l.Close()
			if _, err := os.Stat(path); err != nil {
				t.Errorf("the path is gone with its listener: %v", err)
			}
		}
	}
}

// TestModeIsThereFromTheBeginning: the mode does not come from a chmod after
// the socket can be found, which a waiting process could be faster than.
func TestModeIsThereFromTheBeginning(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	path := filepath.Join(t.TempDir(), "s")
	stop, seen := make(chan struct{}), make(chan fs.FileMode)
	go func() {
		var all fs.FileMode
		for {
			select {
			case <-stop:
				seen <- all
				return
			default:
			}
			if st, err := os.Lstat(path); err == nil {
				all |= st.Mode().Perm()
			}
		}
	}()
	for range 2000 {
		l, err := Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_ = l.Close()
	}
	close(stop)
	if all := <-seen; all&^0o600 != 0 {
		t.Errorf("the socket was seen with mode %o", all)
	}
}

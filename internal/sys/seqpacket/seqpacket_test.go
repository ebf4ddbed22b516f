package seqpacket

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func pair(t *testing.T) (raw *net.UnixConn, conn *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { _ = c.Close() })
	}
	return ends[0], wrap(ends[1])
}

func soon() time.Time { return time.Now().Add(20 * time.Second) }

func TestPacketsKeepTheirBoundariesAndFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for range 2 { // the second takes the place of what the first left behind
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		a, err := Dial(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(a.Send([]byte("one"), w, soon()), a.Send([]byte("two"), nil, soon()), w.Close(), a.Close()); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		n, files, err := b.Receive(buf, soon())
		if err != nil || string(buf[:n]) != "one" || len(files) != 1 {
			t.Fatalf("%q with %d files, %v", buf[:n], len(files), err)
		}
		if _, err := files[0].WriteString("x"); err != nil {
			t.Error(err)
		}
		_ = files[0].Close()
		if p, err := io.ReadAll(r); err != nil || string(p) != "x" {
			t.Errorf("%q, %v", p, err)
		}
		if n, files, err := b.Receive(buf, soon()); err != nil || string(buf[:n]) != "two" || len(files) != 0 {
			t.Errorf("%q with %d files, %v", buf[:n], len(files), err)
		}
		if _, _, err := b.Receive(buf, soon()); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
		_, _, _ = r.Close(), b.Close(), l.Close()
	}
}

// Whatever is wrong with a packet, no descriptor that came with it stays open.
func TestBrokenPacketsLeaveNothingOpen(t *testing.T) {
	for name, c := range map[string]struct {
		packet []byte
		files  int
	}{
		"cut packet":     {make([]byte, 200), 1},
		"too many files": {[]byte("x"), maxFiles + 3},
	} {
		t.Run(name, func(t *testing.T) {
			raw, conn := pair(t)
			before := open(t)
			fds := make([]int, c.files)
			for i := range fds {
				fds[i] = int(os.Stdin.Fd())
			}
			if _, _, err := raw.WriteMsgUnix(c.packet, unix.UnixRights(fds...), nil); err != nil {
				t.Fatal(err)
			}
			if _, _, err := conn.Receive(make([]byte, 100), soon()); err == nil {
				t.Error("the packet passes")
			}
			if after := open(t); after != before {
				t.Errorf("%d descriptors became %d", before, after)
			}
		})
	}
}

func open(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

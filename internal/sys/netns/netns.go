// Package netns enters network namespaces and makes sockets in them.
//
// A thread has a network namespace; a goroutine has none. Every function here
// pins the goroutine to its thread for the time it is abroad, and a thread
// that cannot be brought home is never given back to the scheduler.
package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// ID tells network namespaces apart for as long as one of them is held open:
// the device and inode of the namespace file.
type ID struct {
	Dev, Inode uint64
}

// NS is an open network namespace. It stays alive at least until Close. Safe
// for use by several goroutines. Close may be called while Do is under way.
type NS struct {
	file   *os.File
	home   *os.File
	id     ID
	closed atomic.Bool
	users  atomic.Int64 // calls of Do under way, and one more until Close
}

// Open opens the namespace at path: /proc/<pid>/ns/net, or a file it is bound
// over.
func Open(path string) (*NS, error) {
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening network namespace: %w", err)
	}
	ns, err := FromFile(f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return ns, nil
}

// FromFile takes over an open namespace descriptor, such as one that came over
// a unix socket. On error the file stays the caller's.
func FromFile(f *os.File) (*NS, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", f.Name(), err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("%s is not a namespace", f.Name())
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", f.Name(), err)
	}
	// The thread's own namespace, and not the process's first thread's, is
	// home: a process may have been started inside a namespace of its own.
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("opening own network namespace: %w", err)
	}
	return opened(f, home, &st), nil
}

// Current opens the namespace that the calling thread is in: the process's own,
// outside of Do. /proc/self is that of the first thread, which another goroutine
// may be using for Do at the same time.
func Current() (*NS, error) { return Open("/proc/thread-self/ns/net") }

// ID identifies the namespace while it is open.
func (n *NS) ID() ID { return n.id }

// File is the namespace's descriptor; it belongs to n.
func (n *NS) File() *os.File { return n.file }

// opened returns an NS that holds its descriptors until it is closed.
func opened(file, home *os.File, st *unix.Stat_t) *NS {
	n := &NS{file: file, home: home, id: ID{Dev: uint64(st.Dev), Inode: st.Ino}} //nolint:unconvert // Dev is 32 bits on some platforms
	n.users.Store(1)
	return n
}

// Same reports whether two are of one namespace. nil is that of the process.
func Same(a, b *NS) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.ID() == b.ID()
}

// Close releases the descriptors, once no Do is under way. There are no further ones. The nil
// NS has none.
func (n *NS) Close() error {
	if n == nil {
		return nil
	}
	if n.closed.Swap(true) {
		return os.ErrClosed
	}
	return n.release()
}

// hold keeps the descriptors open until release. It reports false after Close.
func (n *NS) hold() bool {
	n.users.Add(1)
	if n.closed.Load() {
		_ = n.release()
		return false
	}
	return true
}

func (n *NS) release() error {
	if n.users.Add(-1) > 0 {
		return nil
	}
	return errors.Join(n.home.Close(), n.file.Close())
}

// Do runs fn inside the namespace, on the calling goroutine. fn must not
// block for long and must not start goroutines that expect the namespace.
func (n *NS) Do(fn func() error) error {
	if !n.hold() {
		return fmt.Errorf("entering network namespace: %w", os.ErrClosed)
	}
	defer func() { _ = n.release() }() // Close has returned
	runtime.LockOSThread()
	if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering network namespace: %w", err)
	}
	err := fn()
	if back := unix.Setns(int(n.home.Fd()), unix.CLONE_NEWNET); back != nil {
		// The thread stays locked: it dies with its goroutine, and no other
		// goroutine ever runs in the wrong namespace.
		panic(fmt.Sprintf("cannot return to the own network namespace: %v", back))
	}
	runtime.UnlockOSThread()
	return err
}

// Socket makes a non-blocking, close-on-exec socket inside the namespace. The
// descriptor is the caller's; a socket stays where it was made.
func (n *NS) Socket(family, kind, proto int) (int, error) {
	fd := -1
	err := n.Do(func() error {
		var err error
		fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, proto)
		return err
	})
	return fd, err
}

// New makes a network namespace with nothing in it but a loopback interface
// that is down. It lives for as long as something is in it or holds it open.
func New() (*NS, error) {
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("opening own network namespace: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		_ = home.Close()
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	f, err := os.Open("/proc/thread-self/ns/net")
	if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
		panic(fmt.Sprintf("cannot return to the own network namespace: %v", back))
	}
	runtime.UnlockOSThread()
	if err != nil {
		_ = home.Close()
		return nil, fmt.Errorf("opening the new network namespace: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		_ = home.Close()
		_ = f.Close()
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return opened(f, home, &st), nil
}

// Dup opens the same namespace once more, for an owner of its own.
func (n *NS) Dup() (*NS, error) {
	fd, err := unix.FcntlInt(n.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating network namespace: %w", err)
	}
	f := os.NewFile(uintptr(fd), n.file.Name())
	ns, err := FromFile(f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return ns, nil
}

// Addrs lists the addresses of all interfaces of the namespace but loopback's.
func (n *NS) Addrs() ([]netip.Addr, error) {
	var addrs []netip.Addr
	err := n.Do(func() error {
		list, err := net.InterfaceAddrs()
		if err != nil {
			return fmt.Errorf("listing addresses: %w", err)
		}
		for _, a := range list {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || p.Addr().IsLoopback() {
				continue
			}
			addrs = append(addrs, p.Addr().Unmap())
		}
		return nil
	})
	return addrs, err
}

package local

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/sys/unixsock"
)

// restartPause is between the end of a daemon and its next start.
const restartPause = time.Second

// keeper is the first process of a PID namespace: it keeps daemons running,
// collects every process that ends, and does what it is told on a socket.
type keeper struct {
	d    dirs
	name string
	bin  string

	mu      sync.Mutex // held while a process is started, so that none is collected before it is known
	waiting map[int]chan struct{}
	daemons map[string]*kept
}

// kept is one daemon. Its fields are the keeper's, under mu.
type kept struct {
	daemon
	pid     int // 0: not running
	wanted  bool
	changed chan struct{} // closed, and replaced, when wanted or pid changes
}

func newKeeper(d dirs, name, bin string) *keeper {
	k := &keeper{d: d, name: name, bin: bin, waiting: map[int]chan struct{}{}, daemons: map[string]*kept{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	go func() {
		for range ended {
			k.collect()
		}
	}()
	return k
}

func (k *keeper) collect() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c := k.waiting[pid]; c != nil {
			delete(k.waiting, pid)
			close(c)
		}
	}
}

// start runs a program of the cluster, with its output in a log, and returns
// what is closed when it ends. k.mu is held.
func (k *keeper) start(program, log string, args []string) (int, chan struct{}, error) {
	out, err := os.OpenFile(k.d.log(log), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return 0, nil, err
	}
	defer out.Close() //nolint:errcheck // the child's
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close() //nolint:errcheck // only read
	path := filepath.Join(k.bin, program)
	pid, err := syscall.ForkExec(path, append([]string{path}, args...), &syscall.ProcAttr{
		Dir: "/", Env: environment(k.bin), Files: []uintptr{null.Fd(), out.Fd(), out.Fd()},
	})
	if err != nil {
		return 0, nil, fmt.Errorf("starting %s: %w", path, err)
	}
	c := make(chan struct{})
	k.waiting[pid] = c
	return pid, c, nil
}

func environment(bin string) []string {
	return []string{"PATH=" + bin + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
}

// run runs a program to its end.
func (k *keeper) run(program, log string, args ...string) error {
	k.mu.Lock()
	_, c, err := k.start(program, log, args)
	k.mu.Unlock()
	if err == nil {
		<-c
	}
	return err
}

// keep starts a daemon, and starts it again whenever it ends.
func (k *keeper) keep(dm daemon) {
	x := &kept{daemon: dm, wanted: true, changed: make(chan struct{})}
	k.mu.Lock()
	k.daemons[dm.Name] = x
	k.mu.Unlock()
	go func() {
		for {
			k.awaitWanted(x)
			k.once(x)
			time.Sleep(restartPause)
		}
	}()
}

func (k *keeper) awaitWanted(x *kept) {
	for {
		k.mu.Lock()
		wanted, changed := x.wanted, x.changed
		k.mu.Unlock()
		if wanted {
			return
		}
		<-changed
	}
}

func (k *keeper) once(x *kept) {
	k.mu.Lock()
	if !x.wanted { // since awaitWanted
		k.mu.Unlock()
		return
	}
	pid, c, err := k.start(x.Name, k.name+"-"+x.Name, x.Args)
	x.set(pid)
	k.mu.Unlock()
	if err != nil {
		slog.Error("daemon did not start", "daemon", x.Name, "error", err)
		return
	}
	<-c
	k.mu.Lock()
	x.set(0)
	wanted := x.wanted
	k.mu.Unlock()
	slog.Info("daemon ended", "daemon", x.Name, "starts again", wanted)
}

func (x *kept) set(pid int) {
	x.pid = pid
	x.announce()
}

func (x *kept) announce() {
	close(x.changed)
	x.changed = make(chan struct{})
}

// want makes a daemon run, or kills it and leaves it down; it returns when
// that is so.
func (k *keeper) want(name string, running bool) error {
	k.mu.Lock()
	x := k.daemons[name]
	if x == nil {
		k.mu.Unlock()
		return fmt.Errorf("%s does not run %q", k.name, name)
	}
	x.wanted = running
	x.announce()
	k.mu.Unlock()
	for {
		k.mu.Lock()
		pid, changed := x.pid, x.changed
		if !running && pid != 0 {
			_ = unix.Kill(pid, unix.SIGKILL) // not collected yet: mu is held
		}
		k.mu.Unlock()
		if (pid != 0) == running {
			return nil
		}
		<-changed
	}
}

// stopped lists the daemons that are kept down.
func (k *keeper) stopped() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var names []string
	for name, x := range k.daemons {
		if !x.wanted {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// serve answers "start NAME", "stop NAME" and "stopped" on the keeper's
// socket, one line a connection, with "ok" (and names) or what is wrong.
func (k *keeper) serve() error {
	path := k.d.control(k.name)
	l, err := unixsock.Listen("unix", path)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go k.answer(c)
	}
}

func (k *keeper) answer(c net.Conn) {
	defer c.Close() //nolint:errcheck // the other end has its answer, or is gone
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	verb, name, _ := strings.Cut(strings.TrimSpace(line), " ")
	answer := "ok"
	switch verb {
	case "stopped":
		answer = strings.Join(append([]string{answer}, k.stopped()...), " ")
	case "start", "stop":
		err = k.want(name, verb == "start")
	default:
		err = fmt.Errorf("no such request %q", verb)
	}
	if err != nil {
		fmt.Fprintln(c, err)
		return
	}
	fmt.Fprintln(c, answer)
}

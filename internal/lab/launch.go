package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab/network"
	"github.com/ambit-mesh/ambit/internal/lab/objects"
	"github.com/ambit-mesh/ambit/internal/lab/process"
	"github.com/ambit-mesh/ambit/internal/sys/proc"
)

// Names under which this program runs itself again.
const (
	SupervisorName = "ambit-lab-supervisor"
	InitName       = "ambit-lab-init"
)

// Descriptors a supervisor is started with.
const (
	FdReady    = 3 // the supervisor writes why it failed, or "ok"
	FdLifeline = 4 // the lab ends when the other end closes
)

func (cfg *Config) complete() error {
	if runtime.GOOS != "linux" {
		return errors.New("a lab needs Linux")
	}
	if cfg.Name == "" {
		cfg.Name = "demo"
	}
	if !nameSyntax.MatchString(cfg.Name) {
		return fmt.Errorf("lab name %q: use lower case letters, digits and dashes, at most 32", cfg.Name)
	}
	if cfg.StateDir == "" {
		cfg.StateDir = DefaultStateDir(cfg.Name)
	}
	var err error
	if cfg.StateDir, err = filepath.Abs(cfg.StateDir); err != nil {
		return err
	}
	if cfg.Nodes == 0 {
		cfg.Nodes = 1
	}
	if cfg.Nodes < 1 || cfg.Nodes > network.MaxNodes {
		return fmt.Errorf("a lab has 1 to %d nodes, not %d", network.MaxNodes, cfg.Nodes)
	}
	if cfg.ReadyTimeout == 0 {
		cfg.ReadyTimeout = 60 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if os.Geteuid() != 0 {
		cfg.UserNamespace = true
	}
	if !cfg.Mesh {
		return nil
	}
	return cfg.findBinaries()
}

func (cfg *Config) hasNode(name string) bool {
	for n := 1; n <= cfg.Nodes; n++ {
		if network.NodeName(n) == name {
			return true
		}
	}
	return false
}

func (cfg *Config) findBinaries() error {
	if cfg.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		cfg.BinDir = filepath.Dir(self)
	}
	var err error
	if cfg.BinDir, err = filepath.Abs(cfg.BinDir); err != nil {
		return err
	}
	for _, name := range []string{network.Ambitd, network.Ztunnel, network.AmbitCNI, network.Waypoint} {
		if _, err := exec.LookPath(filepath.Join(cfg.BinDir, name)); err != nil {
			return fmt.Errorf("%s is not in %s: build it with `make build`, or say with --bin where the binaries are (--plaintext runs a lab without a mesh): %w", name, cfg.BinDir, err)
		}
	}
	for node, path := range cfg.PeerZtunnel {
		if !cfg.hasNode(node) {
			return fmt.Errorf("ztunnel for %s: this lab's nodes are %s to %s", node, network.NodeName(1), network.NodeName(cfg.Nodes))
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return err
		}
		if _, err := exec.LookPath(abs); err != nil {
			return fmt.Errorf("ztunnel for %s: %w", node, err)
		}
		cfg.PeerZtunnel[node] = abs
	}
	return nil
}

func start(ctx context.Context, cfg Config) (*Lab, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	docs, err := objects.ParsePaths(cfg.Manifests)
	if err == nil {
		err = checkPaths(cfg.Manifests)
	}
	if err != nil {
		return nil, err
	}
	more, err := objects.ParseText("input", cfg.YAML)
	if err != nil {
		return nil, err
	}
	docs = append(docs, more...)
	d := Dirs{cfg.StateDir}
	if err := claim(d, cfg); err != nil {
		return nil, err
	}
	l, err := launch(ctx, d, cfg)
	if err != nil {
		_ = removeState(d)
		return nil, err
	}
	if err := l.begin(ctx, cfg, docs); err != nil {
		_ = l.Close()
		return nil, err
	}
	return l, nil
}

// begin gives a new supervisor its objects and waits until all is ready.
func (l *Lab) begin(ctx context.Context, cfg Config, docs []objects.Document) error {
	if _, err := l.apply(ctx, docs); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.ReadyTimeout, fmt.Errorf("waited %s", cfg.ReadyTimeout))
	defer cancel()
	_, err := l.WaitReady(ctx)
	return err
}

// launch starts the supervisor in its namespaces and returns when it listens.
func launch(ctx context.Context, d Dirs, cfg Config) (*Lab, error) {
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		CloseAll([]*os.File{readyR, readyW})
		return nil, err
	}
	defer CloseAll([]*os.File{readyR, lifeR})
	cmd, err := supervisorCommand(d, cfg, readyW, lifeR)
	if err == nil {
		err = cmd.Start()
	}
	_ = readyW.Close()
	if err != nil {
		_ = lifeW.Close()
		return nil, explainClone(err, cfg.UserNamespace)
	}
	_ = cmd.Stdout.(*os.File).Close()
	l := &Lab{Dirs: d, process: cmd.Process, Exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait()
		close(l.Exited)
	}()
	if cfg.Detach {
		_ = lifeW.Close()
	} else {
		l.Lifeline = lifeW
	}
	rec := &record{proc.Of(cmd.Process.Pid), cfg}
	if err := writeRecord(d, rec); err != nil {
		_ = l.Close()
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = readyR.SetReadDeadline(time.Now()) })()
	b, err := io.ReadAll(io.LimitReader(readyR, 64<<10))
	if err == nil && string(b) == "ok" {
		return l, nil
	}
	said := strings.TrimSpace(string(b))
	if said == "" {
		said = strings.TrimSpace(process.Tail(l.LogPath("lab"), 2<<10))
	}
	_ = l.Close()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, fmt.Errorf("the lab did not start: %s", said)
}

func supervisorCommand(d Dirs, cfg Config, ready, lifeline *os.File) (*exec.Cmd, error) {
	log, err := os.OpenFile(d.Log("lab"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{SupervisorName, d.Root}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{ready, lifeline}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		// A session of its own: ^C in the terminal is for whoever started the
		// lab, who then ends it in order.
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if cfg.UserNamespace {
		a := cmd.SysProcAttr
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return cmd, nil
}

// explainClone says what to do when the kernel refuses new namespaces.
func explainClone(err error, user bool) error {
	switch {
	case user && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EACCES)):
		return fmt.Errorf("this machine does not let users make user namespaces; allow it (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns) or run as root: %w", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("making namespaces takes CAP_SYS_ADMIN, which this root does not have (a container?): %w", err)
	}
	return fmt.Errorf("starting the lab's supervisor: %w", err)
}

package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/ops/printer"
)

// InitSpec is what the first process of a container does before it becomes
// the container's program. It is already in the pod's network namespace, and
// in mount and host name namespaces of its own.
type InitSpec struct {
	Hostname string            `json:"hostname,omitempty"`
	Binds    map[string]string `json:"binds,omitempty"` // file of the pod: what covers it
	Dir      string            `json:"dir,omitempty"`
	Argv     []string          `json:"argv"` // empty: wait to be killed, as a pause container does
	TTY      bool              `json:"tty,omitempty"`
	User     *int64            `json:"user,omitempty"`
	Group    *int64            `json:"group,omitempty"`
}

// Exit codes of shells for a program that cannot be run.
const (
	ExitCannotRun = 126
	exitNotFound  = 127
)

// PodInit is the first process of a container: it prepares what the InitSpec in arg asks for and becomes
// the program. It returns the exit code when it cannot.
func PodInit(arg string) int {
	say := printer.NewPrinter(os.Stderr).Printf
	var s InitSpec
	if err := json.Unmarshal([]byte(arg), &s); err != nil {
		_ = say("lab: %v\n", err)
		return ExitCannotRun
	}
	if err := s.prepare(); err != nil {
		_ = say("lab: preparing the container: %v\n", err)
		return ExitCannotRun
	}
	if len(s.Argv) == 0 {
		c := make(chan os.Signal, 1)
		signal.Notify(c, unix.SIGTERM, unix.SIGINT)
		<-c
		return 0
	}
	path, err := exec.LookPath(s.Argv[0])
	if err != nil {
		_ = say("lab: %v (a lab runs the programs of this machine, whatever the image)\n", err)
		return exitNotFound
	}
	err = unix.Exec(path, s.Argv, os.Environ())
	_ = say("lab: %s: %v\n", path, err)
	return ExitCannotRun
}

func (s *InitSpec) prepare() error {
	for target, source := range s.Binds {
		// A machine without the file gets none: a lab writes nothing to it.
		err := unix.Mount(source, target, "", unix.MS_BIND, "")
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s: %w", target, err)
		}
	}
	if s.Hostname != "" {
		if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
			return fmt.Errorf("host name: %w", err)
		}
	}
	if s.TTY {
		if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
			return fmt.Errorf("terminal: %w", err)
		}
	}
	if err := s.become(); err != nil {
		return err
	}
	if s.Dir != "" {
		return os.Chdir(s.Dir)
	}
	return nil
}

// become takes the identity that the pod asks for. A user namespace has only
// one, and there it is an error to ask for another.
func (s *InitSpec) become() error {
	if s.Group != nil {
		if err := unix.Setgroups(nil); err != nil {
			return fmt.Errorf("runAsGroup: %w", err)
		}
		if err := unix.Setresgid(int(*s.Group), int(*s.Group), int(*s.Group)); err != nil {
			return fmt.Errorf("runAsGroup: %w", err)
		}
	}
	if s.User != nil {
		if err := unix.Setresuid(int(*s.User), int(*s.User), int(*s.User)); err != nil {
			return fmt.Errorf("runAsUser: %w", err)
		}
	}
	return nil
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// lastOutput is how long the output of an ended program is waited for.
const lastOutput = time.Second

// Interactive runs a program with a terminal of its own, connected to the one
// of the calling process, and returns its exit code.
func (l *Lab) Interactive(ctx context.Context, in Where, argv ...string) (int, error) {
	outer := int(os.Stdin.Fd())
	saved, err := unix.IoctlGetTermios(outer, unix.TCGETS)
	if err != nil {
		return -1, errors.New("standard input is not a terminal: for a command without one, use `ambit lab exec` without -t")
	}
	ptm, pts, err := openTerminal()
	if err != nil {
		return -1, fmt.Errorf("making a terminal: %w", err)
	}
	defer ptm.Close() //nolint:errcheck // all was read
	copySize(outer, ptm)
	cmd, err := l.Exec(ctx, in, ExecOptions{Stdin: pts, Stdout: pts, Stderr: pts, TTY: true, Env: []string{"TERM=" + os.Getenv("TERM")}}, argv...)
	_ = pts.Close()
	if err != nil {
		return -1, err
	}
	raw := *saved
	makeRaw(&raw)
	if err := unix.IoctlSetTermios(outer, unix.TCSETS, &raw); err != nil {
		return -1, err
	}
	defer unix.IoctlSetTermios(outer, unix.TCSETS, saved) //nolint:errcheck // nobody is left to tell

	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer func() { signal.Stop(resized); close(resized) }()
	go func() {
		for range resized {
			copySize(outer, ptm)
		}
	}()
	// Blocked in a read when the program ends; the process ends soon after.
	go func() { _, _ = io.Copy(ptm, os.Stdin) }()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(os.Stdout, ptm) // ends when nobody holds the other side
		close(done)
	}()
	code, err := cmd.Wait()
	select {
	case <-done:
	case <-time.After(lastOutput): // a program in the background holds it
	}
	return code, err
}

// openTerminal makes a pair of terminals: the controller, and the program's.
func openTerminal() (ptm, pts *os.File, err error) {
	ptm, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(ptm.Fd())
	n, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		pts, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		_ = ptm.Close()
		return nil, nil, err
	}
	return ptm, pts, nil
}

func copySize(from int, to *os.File) {
	if ws, err := unix.IoctlGetWinsize(from, unix.TIOCGWINSZ); err == nil {
		_ = unix.IoctlSetWinsize(int(to.Fd()), unix.TIOCSWINSZ, ws)
	}
}

// makeRaw lets every key through to the program.
func makeRaw(t *unix.Termios) {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
}

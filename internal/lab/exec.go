package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Command is a program that runs inside the lab.
type Command struct {
	l    *Lab
	conn *net.UnixConn
	ctx  context.Context
	stop func() bool
}

// Exec starts a program in a pod or another namespace of the lab. It ends, by
// SIGKILL, together with ctx.
func (l *Lab) Exec(ctx context.Context, in Where, opt ExecOptions, argv ...string) (*Command, error) {
	if len(argv) == 0 {
		return nil, errors.New("exec: no command")
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close() //nolint:errcheck // nothing was written
	files := []*os.File{opt.Stdin, opt.Stdout, opt.Stderr}
	for i, f := range files {
		if f == nil {
			files[i] = null
		}
	}
	c, err := dialControl(l.Dirs)
	if err != nil {
		return nil, err
	}
	cmd := &Command{l: l, conn: c, ctx: ctx}
	// The supervisor kills the program when the connection is gone.
	cmd.stop = context.AfterFunc(ctx, func() { _ = c.Close() })
	req := Request{Op: "exec", Where: in, Argv: argv, Env: opt.Env, Dir: opt.Dir, TTY: opt.TTY}
	if err := Send(c, req, files...); err != nil {
		cmd.close()
		return nil, l.lost(ctx, err)
	}
	r := new(Reply)
	if _, err := Receive(c, r); err != nil {
		cmd.close()
		return nil, l.lost(ctx, err)
	}
	if r.Error != "" {
		cmd.close()
		return nil, errors.New(r.Error)
	}
	return cmd, nil
}

func (c *Command) close() {
	c.stop()
	_ = c.conn.Close()
}

// Signal sends a signal to the program and its children.
func (c *Command) Signal(sig unix.Signal) error {
	return Send(c.conn, Request{Op: "signal", Signal: int(sig)})
}

// Wait returns the program's exit code: 128 and the signal's number when one
// ended it.
func (c *Command) Wait() (int, error) {
	defer c.close()
	r := new(Reply)
	if _, err := Receive(c.conn, r); err != nil {
		return -1, c.l.lost(c.ctx, err)
	}
	if r.Exit == nil {
		return -1, errors.New(r.Error)
	}
	return *r.Exit, nil
}

// Run runs a program to its end and returns what it wrote to standard output.
// A program that fails is an error, with what it wrote to standard error.
func (l *Lab) Run(ctx context.Context, in Where, argv ...string) (string, error) {
	var stdout bytes.Buffer
	err := l.RunTo(ctx, in, &stdout, argv...)
	return stdout.String(), err
}

// RunTo is Run that hands over what the program writes as it comes.
func (l *Lab) RunTo(ctx context.Context, in Where, stdout io.Writer, argv ...string) error {
	var stderr bytes.Buffer
	code, err := l.run(ctx, in, stdout, &stderr, argv)
	if err == nil && code != 0 {
		err = fmt.Errorf("%q in %s: exit code %d: %s", argv, in, code, bytes.TrimSpace(stderr.Bytes()))
	}
	return err
}

func (l *Lab) run(ctx context.Context, in Where, stdout, stderr io.Writer, argv []string) (int, error) {
	outR, outW, err := os.Pipe()
	if err != nil {
		return -1, err
	}
	errR, errW, err := os.Pipe()
	if err != nil {
		CloseAll([]*os.File{outR, outW})
		return -1, err
	}
	defer CloseAll([]*os.File{outR, errR})
	cmd, err := l.Exec(ctx, in, ExecOptions{Stdout: outW, Stderr: errW}, argv...)
	CloseAll([]*os.File{outW, errW})
	if err != nil {
		return -1, err
	}
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(stderr, io.LimitReader(errR, maxMessage))
		done <- err
	}()
	_, copyErr := io.Copy(stdout, io.LimitReader(outR, maxMessage))
	if err := <-done; copyErr == nil {
		copyErr = err
	}
	code, err := cmd.Wait()
	if err != nil {
		return code, err
	}
	return code, copyErr
}

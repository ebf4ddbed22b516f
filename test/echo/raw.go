package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/test/traffic"
)

// sendBytes sends bytes, each on a connection of its own, and prints what comes back.
func sendBytes(ctx context.Context, args []string) error {
	f := flags("bytes")
	addr := f.String("addr", "", "server")
	n := f.Int("n", 1<<10, "how many bytes are read at most")
	_ = f.Parse(args)
	out := json.NewEncoder(os.Stdout)
	for _, text := range f.Args() {
		send, err := hex.DecodeString(text)
		if err != nil {
			return err
		}
		_ = out.Encode(bytes1(ctx, *addr, send, *n))
	}
	return nil
}

// bytes1 sends bytes on one connection, and reads n bytes or all that come.
func bytes1(ctx context.Context, addr string, send []byte, n int) (r traffic.Bytes) {
	c, err := dialRaw(ctx, addr)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	defer c.Close() //nolint:errcheck // only closing
	_ = c.SetDeadline(time.Now().Add(4 * callTimeout))
	if _, err := c.Write(send); err != nil {
		r.Error = err.Error()
		return r
	}
	got := make([]byte, n)
	n, err = io.ReadFull(c, got)
	r.Got = hex.EncodeToString(got[:n])
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		r.Ended = true
	case err != nil:
		r.Error = err.Error()
	}
	return r
}

// serveDeaf has so many connections wait that the kernel takes no more, and accepts none.
func serveDeaf(ctx context.Context, l net.Listener) error {
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		return err
	}
	var lerr error
	if err := raw.Control(func(fd uintptr) { lerr = syscall.Listen(int(fd), 0) }); err != nil || lerr != nil {
		return errors.Join(err, lerr)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	var all []net.Conn
	defer func() {
		for _, c := range all {
			_ = c.Close()
		}
	}()
	for {
		c, err := net.DialTimeout("tcp", net.JoinHostPort("localhost", port), time.Second)
		if err != nil {
			break
		}
		all = append(all, c)
	}
	<-ctx.Done()
	return nil
}

// sysctl sets parameters of the kernel.
func sysctl(_ context.Context, args []string) error {
	for _, text := range args {
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return fmt.Errorf("%q is not NAME=VALUE", text)
		}
		if err := os.WriteFile(filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/")), []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

package dashboard

import (
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"runtime"
	"sync"
)

// maxConnections bounds the connections that are forwarded at once. Others wait to be
// accepted.
const maxConnections = 128

// forward carries each connection of a listener to one that dial makes, until ctx ends. It
// closes the listener.
func forward(ctx context.Context, l net.Listener, dial func(context.Context) (net.Conn, error), failed func(error)) error {
	ctx, cancel := context.WithCancel(ctx)
	var carried sync.WaitGroup
	defer carried.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	room := make(chan struct{}, maxConnections)
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		near, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return errors.Join(err, l.Close())
		}
		carried.Go(func() {
			defer func() { <-room }()
			if err := carry(ctx, near, dial); err != nil && ctx.Err() == nil {
				failed(err)
			}
		})
	}
}

// carry copies bytes both ways until either end has ended.
func carry(ctx context.Context, near net.Conn, dial func(context.Context) (net.Conn, error)) error {
	defer near.Close() //nolint:errcheck // its end was seen
	far, err := dial(ctx)
	if err != nil {
		return err
	}
	end := sync.OnceFunc(func() {
		_ = near.Close()
		_ = far.Close()
	})
	defer end()
	defer context.AfterFunc(ctx, end)()
	var back sync.WaitGroup
	back.Go(func() {
		defer end()
		_, _ = io.Copy(far, near)
	})
	_, err = io.Copy(near, far)
	end()
	back.Wait()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrClosedPipe) {
		err = nil // the client has ended it
	}
	return err
}

// browse has a browser of this machine open a page.
func browse(ctx context.Context, url string) error {
	name, args := "xdg-open", []string{url}
	switch runtime.GOOS {
	case "darwin":
		name = "open"
	case "windows":
		name, args = "rundll32", []string{"url.dll,FileProtocolHandler", url}
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), name, args...)
	if err := cmd.Start(); err != nil {
		return err
	}
	return cmd.Process.Release() // it goes on by itself
}

package supervisor

import (
	"context"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/network"
)

// drainGrace bounds how long the old generation of a ztunnel may drain.
const drainGrace = 35 * time.Second

// do runs f in the turn of the component's keeper.
func (c *component) do(ctx context.Context, f func(ctx context.Context) error) error {
	done := make(chan error, 1)
	select {
	case c.commands <- func(ctx context.Context) { done <- f(ctx) }:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// kill only sends a signal: what follows is the keeper's business.
func (c *component) kill(sig unix.Signal) error {
	p := c.process()
	if p == nil {
		return fmt.Errorf("%s is not running", c.name)
	}
	c.s.kids.Signal(p.child, sig)
	return nil
}

func (c *component) stop(ctx context.Context, sig unix.Signal) error {
	return c.do(ctx, func(context.Context) error {
		c.s.mu.Lock()
		c.held = true
		p := c.current
		c.s.mu.Unlock()
		if p == nil {
			return nil
		}
		c.s.kids.Signal(p.child, sig)
		t := time.NewTimer(drainGrace)
		defer t.Stop()
		select {
		case <-p.child.Done:
		case <-t.C:
			c.s.end(p.child, 0)
		}
		c.ended(p)
		return nil
	})
}

func (c *component) resume(ctx context.Context) error {
	err := c.do(ctx, func(context.Context) error {
		c.s.mu.Lock()
		c.held = false
		c.s.mu.Unlock()
		return nil
	})
	if err != nil {
		return err
	}
	return c.awaitReady(ctx)
}

func (c *component) awaitReady(ctx context.Context) error {
	for {
		c.s.mu.Lock()
		ready, changed, message := c.ready, c.s.changed, c.message
		c.s.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %s: %w", c.name, message, context.Cause(ctx))
		}
	}
}

// restart replaces the process; path, when given, is its binary from now on.
func (c *component) restart(ctx context.Context, mode lab.RestartMode, path string) error {
	if path != "" {
		c.s.mu.Lock()
		c.path = path
		c.s.mu.Unlock()
	}
	if mode == lab.RestartGraceful && strings.HasPrefix(c.name, network.Ztunnel+"/") {
		return c.do(ctx, c.handOver)
	}
	sig := unix.SIGTERM
	if mode == lab.RestartKill {
		sig = unix.SIGKILL
	}
	if err := c.stop(ctx, sig); err != nil {
		return err
	}
	return c.resume(ctx)
}

// handOver starts the next generation beside the running one, which is told to
// end when the next is ready. The old one drains in the background.
func (c *component) handOver(ctx context.Context) error {
	next, err := c.spawn(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if err = c.ask(ctx, next); err == nil {
			break
		}
		select {
		case <-next.child.Done:
			err = fmt.Errorf("the next generation ended with code %d%s", next.child.ExitCode(), c.lastWords())
		case <-ctx.Done():
			err = fmt.Errorf("the next generation does not get ready: %w", err)
			c.s.end(next.child, 0)
		case <-time.After(probeEvery):
			continue
		}
		c.release(next)
		return err
	}
	old := c.install(next)
	c.setReady(next, true)
	if old != nil {
		c.s.running.Add(1)
		go func() {
			defer c.s.running.Done()
			c.s.end(old.child, drainGrace)
			c.ended(old)
		}()
	}
	return nil
}

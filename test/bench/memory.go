package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
)

// Rows about the memory of both proxies.
const (
	rowIdle, rowIdleOwn     = "resident memory, idle", "of it not of files, idle"
	rowLoaded, rowLoadedOwn = "resident memory, after load", "of it not of files, after load"
	rowRested, rowRestedOwn = "resident memory, rested", "of it not of files, rested"
)

// resident measures what new proxies need before they have carried more than a few
// connections, when a load of all kinds has just ended, and after a rest.
func (c *contender) resident(ctx context.Context, o options) (map[string]float64, error) {
	if err := c.fresh(ctx); err != nil {
		return nil, err
	}
	out := map[string]float64{}
	take := func(moment, row, own string) error {
		if _, err := c.settled(ctx); err != nil {
			return err
		}
		u, err := c.usage(ctx)
		if err != nil {
			return err
		}
		out[row], out[own] = float64(u.RSS)/(1<<20), float64(u.Anonymous)/(1<<20)
		return c.heaps(ctx, o, moment)
	}
	if err := take("idle", rowIdle, rowIdleOwn); err != nil {
		return nil, err
	}
	for _, load := range []string{"throughput 16", "echo 64", "connect 16", "throughput 1"} {
		mode, conns, _ := strings.Cut(load, " ")
		if _, err := c.load(ctx, mode, "-conns", conns, "-duration", o.duration.String()); err != nil {
			return nil, err
		}
	}
	if err := take("loaded", rowLoaded, rowLoadedOwn); err != nil {
		return nil, err
	}
	select {
	case <-time.After(o.rest):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return out, take("rested", rowRested, rowRestedOwn)
}

// heaps writes what the proxies' memory is made of, when profiles are asked for: maps of the
// kernel, and, but of the peer, profiles of the heap and statistics of Go's runtime.
func (c *contender) heaps(ctx context.Context, o options, moment string) error {
	if o.profiles == "" || c.proxies == nil {
		return nil
	}
	pids, err := c.proxies(ctx)
	if err != nil {
		return err
	}
	for i, pid := range pids {
		text, err := c.lab.Run(ctx, lab.LAN, "cat", fmt.Sprintf("/proc/%d/smaps", pid))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(o.profiles, fmt.Sprintf("%s-%s-%d-smaps", c.name, moment, i+1)), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if c.name != "ambit" && c.name != "before" {
		return nil
	}
	for _, n := range proxies {
		node := strings.TrimPrefix(n, "ztunnel/")
		for _, what := range []string{"heap", "goroutine?debug=1"} {
			b, err := c.lab.Get(ctx, lab.InZtunnel(node), "http://127.0.0.1:15000/debug/pprof/"+what)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(o.profiles, strings.Join([]string{c.name, moment, node, strings.TrimSuffix(what, "?debug=1")}, "-")), b, 0o600); err != nil {
				return err
			}
		}
		b, err := c.lab.Get(ctx, lab.InZtunnel(node), "http://127.0.0.1:15020/stats/prometheus")
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(o.profiles, strings.Join([]string{c.name, moment, node, "metrics"}, "-")), b, 0o600); err != nil {
			return err
		}
	}
	return nil
}

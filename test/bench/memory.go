package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/measure"
)

// Rows about the memory of both proxies.
const (
	rowHeld, rowHeldOwn     = "memory per held connection", "of it not of files, per connection"
	rowIdle, rowIdleOwn     = "resident memory, idle", "of it not of files, idle"
	rowLoaded, rowLoadedOwn = "resident memory, after load", "of it not of files, after load"
	rowRested, rowRestedOwn = "resident memory, rested", "of it not of files, rested"
)

// held measures how much new proxies grow by connections, in KiB per
// connection. They work a little before and hold a quarter as many, so that
// what they need once does not count: buffers, tunnels' tables, and heap that
// the first traffic has left behind.
func (c *contender) held(ctx context.Context, o options) (_ map[string]float64, err error) {
	if err := c.fresh(ctx); err != nil {
		return nil, err
	}
	// Pages of the program that are unmapped after the start come back with the first
	// connections, and are none of the memory of those.
	if _, err := c.settled(ctx); err != nil {
		return nil, err
	}
	for _, mode := range []string{"echo", "connect", "throughput"} {
		if _, err := c.load(ctx, mode, "-conns", "4", "-duration", "300ms"); err != nil {
			return nil, err
		}
	}
	var at [2]measure.Usage
	for i, conns := range []int{max(1, o.held/4), o.held} {
		h, herr := c.hold(ctx, "hold", "-conns", strconv.Itoa(conns))
		if herr != nil {
			return nil, herr
		}
		defer func() { err = errors.Join(err, h.end()) }()
		if at[i], err = c.settled(ctx); err != nil {
			return nil, err
		}
		if err := c.heaps(ctx, o, "held"+strconv.Itoa(i)); err != nil {
			return nil, err
		}
	}
	each := func(a, b int64) float64 { return float64(b-a) / 1024 / float64(o.held) }
	return map[string]float64{rowHeld: each(at[0].RSS, at[1].RSS), rowHeldOwn: each(at[0].Anonymous, at[1].Anonymous)}, nil
}

// settled is the proxies' memory once it stands still, or after a while: a proxy may give
// memory back some time after its work.
func (c *contender) settled(ctx context.Context) (u measure.Usage, err error) {
	return settled(ctx, func() (measure.Usage, error) { return c.usage(ctx) })
}

// settled is what usage returns once it stands still.
func settled(ctx context.Context, usage func() (measure.Usage, error)) (u measure.Usage, err error) {
	const step, still, most = 250 * time.Millisecond, 12, 40
	last, same := int64(-1), 0
	for range most {
		if u, err = usage(); err != nil {
			return u, err
		}
		// A few pages come and go for ever.
		if d := u.RSS - last; max(d, -d) <= nearly && last >= 0 {
			if same++; same == still {
				break
			}
		} else {
			last, same = u.RSS, 0
		}
		select {
		case <-time.After(step):
		case <-ctx.Done():
			return u, context.Cause(ctx)
		}
	}
	return u, nil
}

// nearly is how much the memory of proxies may change and still stand still.
const nearly = 64 << 10

// resident measures what new proxies need before they have carried more than a few
// connections, and when a load of all kinds has just ended.
func (c *contender) resident(ctx context.Context, o options) (map[string]float64, error) {
	if err := c.fresh(ctx); err != nil {
		return nil, err
	}
	out := map[string]float64{}
	take := func(moment, row, own string) error {
		u, err := c.settled(ctx)
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
	defer func() { c.loaded = time.Now() }()
	return out, take("loaded", rowLoaded, rowLoadedOwn)
}

// rested measures the proxies that resident has loaded, a while later. All contenders rest
// at the same time.
func (c *contender) rested(ctx context.Context, o options) (map[string]float64, error) {
	select {
	case <-time.After(o.rest - time.Since(c.loaded)):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	u, err := c.settled(ctx)
	if err != nil {
		return nil, err
	}
	return map[string]float64{rowRested: float64(u.RSS) / (1 << 20), rowRestedOwn: float64(u.Anonymous) / (1 << 20)}, c.heaps(ctx, o, "rested")
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

// Command bench measures what a mesh costs, on this machine, in one run:
// traffic between two pods on two nodes of a lab, with no mesh, through two
// plain proxies that splice, through Ambit, and through an earlier build of
// Ambit or another node proxy given by path. Their rounds are interleaved, so that what else happens on
// the machine happens to all of them; read the ratios.
//
//	bench [-bin DIR] [-before DIR] [-peer ZTUNNEL] [-rounds N] [-duration D] [-cells NAME,…] [-o text|json]
//	bench -l7 [-wide] [-before DIR] [-envoy PATH] [-nginx PATH] [-haproxy PATH] [-rounds N] [-duration D] [-cells NAME,…]
//	bench -scale [-workloads N] [-services N]
//
// It ends with "N passed, N failed": a measured cell passes when there were no
// errors in it; no time is ever judged. It leaves nothing behind, also when it
// is interrupted.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab/supervisor"
	"github.com/ambit-mesh/ambit/test/bench/splice"
)

// limit is for a whole run of the short form, with room for a slow machine, and
// wideLimit for one with all kinds of requests.
const (
	limit     = 15 * time.Minute
	wideLimit = time.Hour
)

type options struct {
	bin, peer  string
	before     string // directory with the programs of another build
	rounds     int
	duration   time.Duration
	held       int
	only       string
	cells      string
	output     string
	scale      bool
	l7         bool
	wide       bool
	profiles   string
	rest       time.Duration
	reverse    map[string]string // programs of reverse proxies, by name
	workloads  int
	services   int
	components map[string]string // program by name
	issuer     issuer            // of the token of guarded requests
}

func main() {
	supervisor.Main()
	if len(os.Args) > 1 && os.Args[1] == splice.Command {
		os.Exit(splice.Main(os.Args[2:]))
	}
	var o options
	flag.StringVar(&o.bin, "bin", "", "directory with the programs (default: build them)")
	flag.StringVar(&o.peer, "peer", os.Getenv("PEER_ZTUNNEL"), "another node proxy to compare with (also $PEER_ZTUNNEL)")
	flag.StringVar(&o.before, "before", "", "directory with the programs of an earlier build of Ambit to compare with")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds; the table has their medians")
	flag.DurationVar(&o.duration, "duration", 1500*time.Millisecond, "how long one cell is measured")
	flag.IntVar(&o.held, "held", 4000, "connections held to measure their memory")
	flag.DurationVar(&o.rest, "rest", 15*time.Second, "how long proxies rest after a load, before their memory is measured once more")
	flag.StringVar(&o.only, "only", "", "contenders, separated by commas: none,splice,ambit,before,peer, with -l7 also waypoint,envoy,envoy-mtls,nginx,haproxy (default all)")
	flag.StringVar(&o.cells, "cells", "", "only cells whose name has one of these, separated by commas: echo,throughput, with -l7 http-1k-c64-r1,grpc,rate (default all)")
	flag.StringVar(&o.output, "o", "text", "text or json")
	flag.BoolVar(&o.l7, "l7", false, "instead: requests of HTTP, with no mesh, through the node proxies, and through a waypoint between them")
	flag.BoolVar(&o.wide, "wide", false, "with -l7: all cells, HTTP/1.1, HTTP/2 and gRPC with bodies of 1 and 64 KiB on 1, 64 and 512 connections, and 1,000 and 10,000 routes")
	flag.StringVar(&o.profiles, "profiles", "", "directory for profiles: of the proxies' heaps, and with -l7 of the waypoint's processor, one for each cell of requests; takes part in what is measured")
	reverse := map[string]*string{}
	for _, p := range reverseProxies {
		if reverse[p.program] == nil {
			variable := "PEER_" + strings.ToUpper(p.program)
			reverse[p.program] = flag.String(p.program, os.Getenv(variable), "with -l7: "+p.program+" to compare with, as a reverse proxy (also $"+variable+")")
		}
	}
	flag.BoolVar(&o.scale, "scale", false, "instead: one change in a large mesh, and what the mesh costs in memory")
	flag.IntVar(&o.workloads, "workloads", 10_000, "with -scale: pods")
	flag.IntVar(&o.services, "services", 2_000, "with -scale: services")
	flag.Parse()
	o.reverse = map[string]string{}
	for name, path := range reverse {
		o.reverse[name] = *path
	}
	os.Exit(run(o))
}

func run(o options) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	most := limit
	if o.wide {
		most = wideLimit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("the benchmark took more than %s", most))
	defer cancel()
	dir, err := os.MkdirTemp("", "ambit-bench-")
	if err != nil {
		return complain(err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a directory for temporary files
	if err := o.programs(ctx, dir); err != nil {
		return complain(err)
	}
	var r *report
	if o.scale {
		r, err = scale(ctx, o, dir)
	} else {
		r, err = compare(ctx, o, dir)
	}
	if r != nil {
		if err := r.print(os.Stdout, o.output); err != nil {
			return complain(err)
		}
	}
	interrupted := errors.Is(context.Cause(ctx), context.Canceled)
	if err != nil {
		complain(err)
		if r == nil {
			return 1
		}
		r.failed++
	}
	if o.output != "json" {
		fmt.Printf("\n%d passed, %d failed\n", r.passed, r.failed)
	}
	switch {
	case interrupted:
		return 130
	case r.failed > 0 || r.passed == 0:
		return 1
	}
	return 0
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, "bench:", err)
	return 1
}

// programs finds what is measured and what measures; what is not in -bin is
// built.
func (o *options) programs(ctx context.Context, dir string) error {
	switch {
	case o.output != "text" && o.output != "json":
		return fmt.Errorf("-o %q: want text or json", o.output)
	case o.rounds < 1 || o.held < 1 || o.duration < 100*time.Millisecond:
		return errors.New("-rounds and -held must be at least 1, -duration at least 100ms")
	}
	want := []string{"ambitd", "ztunnel", "ambit-cni", "load"}
	if o.l7 {
		want = append(want, "waypoint")
	}
	src := map[string]string{"load": "./test/load"}
	o.components = map[string]string{}
	var build []string
	for _, name := range want {
		path := filepath.Join(o.bin, name)
		if st, err := os.Stat(path); o.bin != "" && err == nil && !st.IsDir() {
			abs, err := filepath.Abs(path)
			if err != nil {
				return err
			}
			o.components[name] = abs
			continue
		}
		o.components[name] = filepath.Join(dir, name)
		if src[name] == "" {
			src[name] = "./cmd/" + name
		}
		build = append(build, src[name])
	}
	if o.peer != "" {
		abs, err := filepath.Abs(o.peer)
		if err != nil {
			return err
		}
		if _, err := os.Stat(abs); err != nil {
			return fmt.Errorf("the peer: %w", err)
		}
		o.peer = abs
	}
	if err := o.findBefore(); err != nil {
		return err
	}
	if len(build) == 0 {
		return nil
	}
	progress("building %s", strings.Join(build, " "))
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-o", dir + "/"}, build...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building: %w\n%s", err, out)
	}
	return nil
}

// findBefore makes -before absolute and checks that the programs are there.
func (o *options) findBefore() error {
	if o.before == "" {
		return nil
	}
	abs, err := filepath.Abs(o.before)
	if err != nil {
		return err
	}
	programs := meshPrograms
	if o.l7 {
		programs = append(slices.Clone(programs), "waypoint")
	}
	for _, name := range programs {
		if _, err := os.Stat(filepath.Join(abs, name)); err != nil {
			return fmt.Errorf("-before: %w (build the other commit into a directory of its own)", err)
		}
	}
	o.before = abs
	return nil
}

// meshPrograms are those that are measured.
var meshPrograms = []string{"ambitd", "ztunnel", "ambit-cni"}

// binDir makes one directory with the programs that a lab looks for; program
// returns the path of each. Only the lab of requests has waypoints, and an earlier
// build may have none: then program returns "".
func binDir(dir string, program func(name string) string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, name := range meshPrograms {
		if err := os.Symlink(program(name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return os.Symlink(cmp.Or(program("waypoint"), "/bin/false"), filepath.Join(dir, "waypoint"))
}

// progress says on standard error what is going on.
func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, "… "+format+"\n", args...) }

// compare is the comparison of contenders.
func compare(ctx context.Context, o options, dir string) (*report, error) {
	bin := filepath.Join(dir, "bin")
	if err := binDir(bin, func(name string) string { return o.components[name] }); err != nil {
		return nil, err
	}
	if o.before != "" {
		earlier := filepath.Join(dir, "bin-before")
		if err := binDir(earlier, func(name string) string {
			if name == "waypoint" && !o.l7 {
				return ""
			}
			return filepath.Join(o.before, name)
		}); err != nil {
			return nil, err
		}
		o.before = earlier
	}
	var err error
	if o.issuer, err = newIssuer(); err != nil {
		return nil, err
	}
	w, err := build(ctx, o, dir, bin)
	defer w.close()
	if err != nil {
		return nil, err
	}
	r := newReport(o, w.contenders)
	for round := range o.rounds {
		for _, c := range cells(o) {
			if round >= c.rounds || !o.wants(c) {
				continue
			}
			// The order changes, so that nobody always runs after the same.
			for i := range w.contenders {
				who := w.contenders[(i+round)%len(w.contenders)]
				if c.needsProxies && who.proxies == nil || c.guarded && who.unguarded || who.of != nil {
					continue
				}
				in := who
				if c.large {
					in = who.large
				}
				if in == nil || c.meshed && !who.meshed {
					continue
				}
				v, err := c.measure(ctx, in)
				if ctx.Err() != nil {
					return r, context.Cause(ctx)
				}
				r.add(c, who, v, err)
				if p := who.part; p != nil && p.took != nil {
					r.add(c, p, p.took, nil)
					p.took = nil
				}
			}
		}
		progress("round %d of %d", round+1, o.rounds)
	}
	return r, nil
}

// cell is one kind of measurement, which fills one or more rows of the table.
type cell struct {
	name         string
	rounds       int
	needsProxies bool
	meshed       bool // needs a mesh
	large        bool // in the contender's lab with large packets
	guarded      bool // requests that have a token, which policies judge
	measure      func(ctx context.Context, c *contender) (map[string]float64, error)
}

// Rows of the table.
const (
	rowTP1, rowTP16         = "throughput, 1 stream", "throughput, 16 streams"
	rowCPU1, rowCPU16       = "CPU per GB, 1 stream", "CPU per GB, 16 streams"
	rowDown1, rowDown16     = "throughput from the server, 1 stream", "throughput from the server, 16 streams"
	rowDownCPU1             = "CPU per GB from the server, 1 stream"
	rowDownCPU16            = "CPU per GB from the server, 16 streams"
	largeRow                = "large packets: " // and the name of a row
	rowCold                 = "first connection between two pods, p50"
	rowEcho1                = "echo 1 KiB, 1 connection"
	rowEcho16, rowEcho64    = "echo 1 KiB, 16 connections", "echo 1 KiB, 64 connections"
	rowEchoCPU1             = "CPU per echo, 1 connection"
	rowEchoCPU16            = "CPU per echo, 16 connections"
	rowEchoCPU64            = "CPU per echo, 64 connections"
	rowP50, rowP99          = "latency at 1,000/s, p50", "latency at 1,000/s, p99"
	rowConnect1, rowConnect = "new connections, 1 at a time", "new connections, 16 at a time"
)

// rows is the order of the table, with units and whether more is better.
var rows = []row{
	{rowTP1, "Gbit/s", true}, {rowTP16, "Gbit/s", true},
	{rowCPU1, "CPU-s", false}, {rowCPU16, "CPU-s", false},
	{rowDown1, "Gbit/s", true}, {rowDown16, "Gbit/s", true},
	{rowDownCPU1, "CPU-s", false}, {rowDownCPU16, "CPU-s", false},
	{largeRow + rowTP1, "Gbit/s", true}, {largeRow + rowTP16, "Gbit/s", true},
	{largeRow + rowCPU1, "CPU-s", false}, {largeRow + rowCPU16, "CPU-s", false},
	{largeRow + rowDown1, "Gbit/s", true}, {largeRow + rowDown16, "Gbit/s", true},
	{largeRow + rowDownCPU1, "CPU-s", false}, {largeRow + rowDownCPU16, "CPU-s", false},
	{rowEcho1, "1/s", true}, {rowEcho16, "1/s", true}, {rowEcho64, "1/s", true},
	{rowEchoCPU1, "CPU-µs", false}, {rowEchoCPU16, "CPU-µs", false}, {rowEchoCPU64, "CPU-µs", false},
	{rowP50, "µs", false}, {rowP99, "µs", false},
	{rowConnect1, "1/s", true}, {rowConnect, "1/s", true}, {rowCold, "ms", false},
	{rowHeld, "KiB", false}, {rowHeldOwn, "KiB", false},
	{rowIdle, "MiB", false}, {rowIdleOwn, "MiB", false}, {rowLoaded, "MiB", false}, {rowLoadedOwn, "MiB", false}, {rowRested, "MiB", false}, {rowRestedOwn, "MiB", false},
	{rowDirectory, "MiB", false}, {rowDirectoryOwn, "MiB", false},
}

// heldRounds is how often memory is measured: proxies are replaced for it,
// which takes longer than all other cells of a round.
const heldRounds = 1

// wants reports whether the cell is among -cells.
func (o *options) wants(c cell) bool {
	return slices.ContainsFunc(strings.Split(o.cells, ","), func(part string) bool { return strings.Contains(c.name, part) })
}

// costed returns a cell that also reads what the proxies' processors did for it.
func costed(o options, name string, args []string, pick func(loadResult, time.Duration) map[string]float64) cell {
	return cell{name: name, rounds: o.rounds, measure: func(ctx context.Context, c *contender) (map[string]float64, error) {
		before, err := c.usage(ctx)
		if err != nil {
			return nil, err
		}
		res, err := c.load(ctx, append(args, "-duration", o.duration.String())...)
		if err != nil {
			return nil, err
		}
		after, err := c.usage(ctx)
		if err != nil {
			return nil, err
		}
		return pick(res, after.CPU-before.CPU), nil
	}}
}

func cells(o options) []cell {
	if o.l7 {
		return l7Cells(o)
	}
	d := o.duration.String()
	bulk := func(name, mode, conns, tp, cpu string) cell {
		return costed(o, name, []string{mode, "-conns", conns}, func(r loadResult, used time.Duration) map[string]float64 {
			v := map[string]float64{tp: r.Gbits}
			if used > 0 {
				v[cpu] = used.Seconds() / (float64(r.Bytes) / 1e9)
			}
			return v
		})
	}
	large := func(name, mode, conns, tp, cpu string) cell {
		c := bulk("large packets, "+name, mode, conns, largeRow+tp, largeRow+cpu)
		c.large = true
		return c
	}
	echo := func(name, conns, rate, cpu string) cell {
		return costed(o, name, []string{"echo", "-conns", conns}, func(r loadResult, used time.Duration) map[string]float64 {
			v := map[string]float64{rate: r.PerSecond}
			if used > 0 {
				v[cpu] = float64(used.Microseconds()) / (r.PerSecond * r.Seconds)
			}
			return v
		})
	}
	simple := func(name string, pick func(loadResult) map[string]float64, args ...string) cell {
		return cell{name: name, rounds: o.rounds, measure: func(ctx context.Context, c *contender) (map[string]float64, error) {
			res, err := c.load(ctx, append(args, "-duration", d)...)
			if err != nil {
				return nil, err
			}
			return pick(res), nil
		}}
	}
	perSecond := func(row string) func(loadResult) map[string]float64 {
		return func(r loadResult) map[string]float64 { return map[string]float64{row: r.PerSecond} }
	}
	return []cell{
		{name: "held connections", rounds: min(heldRounds, o.rounds), needsProxies: true, measure: func(ctx context.Context, c *contender) (map[string]float64, error) {
			return c.held(ctx, o)
		}},
		{name: "resident memory", rounds: min(heldRounds, o.rounds), needsProxies: true, measure: func(ctx context.Context, c *contender) (map[string]float64, error) {
			return c.resident(ctx, o)
		}},
		{name: "resident memory, rested", rounds: min(heldRounds, o.rounds), needsProxies: true, measure: func(ctx context.Context, c *contender) (map[string]float64, error) {
			return c.rested(ctx, o)
		}},
		{name: "directory of " + strconv.Itoa(directoryPods), rounds: 1, meshed: true, measure: func(ctx context.Context, c *contender) (map[string]float64, error) {
			return c.directory(ctx)
		}},
		bulk("throughput of 1 stream", "throughput", "1", rowTP1, rowCPU1),
		bulk("throughput of 16 streams", "throughput", "16", rowTP16, rowCPU16),
		bulk("throughput from the server, 1 stream", "download", "1", rowDown1, rowDownCPU1),
		bulk("throughput from the server, 16 streams", "download", "16", rowDown16, rowDownCPU16),
		large("throughput of 1 stream", "throughput", "1", rowTP1, rowCPU1),
		large("throughput of 16 streams", "throughput", "16", rowTP16, rowCPU16),
		large("throughput from the server, 1 stream", "download", "1", rowDown1, rowDownCPU1),
		large("throughput from the server, 16 streams", "download", "16", rowDown16, rowDownCPU16),
		echo("echo on 1", "1", rowEcho1, rowEchoCPU1),
		echo("echo on 16", "16", rowEcho16, rowEchoCPU16),
		echo("echo on 64", "64", rowEcho64, rowEchoCPU64),
		simple("latency", func(r loadResult) map[string]float64 {
			return map[string]float64{rowP50: r.P50Micros, rowP99: r.P99Micros}
		}, "rate", "-conns", "4", "-rate", "1000"),
		simple("connections, 1 at a time", perSecond(rowConnect1), "connect", "-conns", "1"),
		simple("connections, 16 at a time", perSecond(rowConnect), "connect", "-conns", "16"),
		{name: "first connections", rounds: o.rounds, meshed: true, measure: func(ctx context.Context, c *contender) (map[string]float64, error) {
			return c.cold(ctx)
		}},
	}
}

// loadResult is what test/load prints.
type loadResult struct {
	Seconds   float64 `json:"seconds"`
	Bytes     uint64  `json:"bytes"`
	Gbits     float64 `json:"gbits"`
	PerSecond float64 `json:"per_second"`
	P50Micros float64 `json:"p50_us"`
	P99Micros float64 `json:"p99_us"`
	Errors    uint64  `json:"errors"`
	LastError string  `json:"last_error"`
	Held      int     `json:"held"`
}

func parseLoad(line string) (loadResult, error) {
	var r loadResult
	if err := json.Unmarshal([]byte(line), &r); err != nil {
		return r, fmt.Errorf("load printed %q: %w", line, err)
	}
	if r.Errors > 0 {
		return r, fmt.Errorf("%d connections failed, the last with: %s", r.Errors, r.LastError)
	}
	return r, nil
}

func wanted(only, name string) bool {
	return only == "" || slices.Contains(strings.Split(only, ","), name)
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// Command demo shows the main job of the mesh on this machine, with live
// evidence for every claim: plaintext between two unmodified programs becomes
// mutual TLS because a label changed, and everything that follows from it.
//
//	demo [-bin DIR]
//
// It ends with "N passed, N failed", exits non-zero when one failed, and leaves
// no process, namespace or file, also when it is interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/lab/supervisor"
)

// limit is for the whole demonstration.
const limit = 3 * time.Minute

func main() {
	supervisor.Main()
	bin := flag.String("bin", "", "directory with the programs (default: build them)")
	rootless := flag.Bool("rootless", false, "in a user namespace, even as root")
	flag.Parse()
	os.Exit(run(*bin, *rootless))
}

func run(bin string, rootless bool) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the demonstration took more than %s", limit))
	defer cancel()
	dir, err := os.MkdirTemp("", "ambit-demo-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	defer os.RemoveAll(dir) //nolint:errcheck // a directory for temporary files
	if bin == "" {
		bin = dir
		fmt.Println("building …")
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", "./cmd/...", "./test/echo").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "demo: %v\n%s", err, out)
			return 1
		}
	}
	if bin, err = filepath.Abs(bin); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	d := &demo{bin: bin, state: filepath.Join(dir, "lab"), rootless: rootless}
	d.all(ctx)
	d.finish()
	fmt.Printf("\n%d passed, %d failed\n", d.passed, d.failed)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return 130
	case d.failed > 0 || d.passed == 0:
		return 1
	}
	return 0
}

// demo is the stage: the lab, and what the steps know of each other.
type demo struct {
	bin, state string
	rootless   bool
	l          *lab.Lab
	load       *load
	marketLoad *load            // of the second act
	waypoint   []netip.Addr     // the addresses of its pod
	pids       map[string][]int // of the programs, before anything happened

	passed, failed int
	broken         bool // later steps cannot succeed
}

// step is one claim. It returns what was seen, and an error when the claim did
// not hold.
type step struct {
	claim string
	show  func(ctx context.Context) ([]string, error)
	vital bool // without it, the following have no point
}

func (d *demo) all(ctx context.Context) {
	for _, s := range []step{
		{"a mesh of two nodes runs on this machine, pods not yet part of it", d.up, true},
		{"before enrolment, traffic between the nodes can be read by anyone", d.plaintext, false},
		{"a label on the namespace: same processes, new connections are HBONE, no request fails at 1,000/s", d.enrol, true},
		{"both ends know who the other is", d.identities, false},
		{"a policy denies one client and the log names the rule", d.deny, false},
		{"a changed policy closes a connection that is open", d.closeLive, false},
		{"STRICT refuses a client that is not in the mesh", d.strict, false},
		{"ztunnel is replaced on both nodes under load, no request fails", d.replace, false},
		{"metrics and access log of one connection", d.telemetry, false},
		{"a waypoint: a Gateway and a label, and requests of a service go through it; none fails", d.addWaypoint, false},
		{"a route sends one in ten requests to a canary, and those with a header", d.canary, false},
		{"ambit why explains one request that is allowed, and one that a policy refuses", d.explain, false},
		{"a path that takes a user's token: none, a forged one, and a good one; and the metrics of the answers", d.tokens, false},
		{"a request is one trace: in the log of the node proxy, and in two spans of the waypoint", d.oneTrace, false},
		{"a retry hides an endpoint that refuses connections", d.retry, false},
		{"a waypoint that is killed lets no request around it", d.deadWaypoint, false},
		{"memory of every process", d.memory, false},
		{"without the label and the Gateway, the waypoint is gone", d.deleteWaypoint, false},
		{"the label is removed: plaintext again, same processes, no request failed", d.leave, false},
		{"everything ends, nothing is left", d.gone, false},
	} {
		if ctx.Err() != nil {
			fmt.Printf("\n! %v\n", context.Cause(ctx))
			d.failed++
			return
		}
		d.run(ctx, s)
	}
}

func (d *demo) run(ctx context.Context, s step) {
	began := time.Now()
	if d.broken && d.l == nil {
		return
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 45*time.Second, errors.New("waited 45 s"))
	defer cancel()
	seen, err := s.show(ctx)
	mark := "\u2713" // check mark
	if err != nil {
		mark = "\u2717" // ballot x
		d.failed++
		d.broken = d.broken || s.vital
	} else {
		d.passed++
	}
	fmt.Printf("\n%s %s (%.1f s)\n", mark, s.claim, time.Since(began).Seconds())
	for _, line := range seen {
		fmt.Println("    " + cut(line, 330))
	}
	if err != nil {
		for _, line := range strings.Split(err.Error(), "\n") {
			fmt.Println("    failed: " + cut(line, 600))
		}
	}
}

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + " …"
}

// finish ends what a failed or interrupted run has left.
func (d *demo) finish() {
	if d.l != nil {
		if err := d.l.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			d.failed++
		}
	}
}

func (d *demo) start(ctx context.Context) (*lab.Lab, error) {
	settings, err := d.writeMeshConfig()
	if err != nil {
		return nil, err
	}
	return lab.Start(ctx, lab.Config{
		Name: "demo", StateDir: d.state, Nodes: 2, Mesh: true, BinDir: d.bin, UserNamespace: d.rootless,
		YAML: strings.ReplaceAll(shopYAML+marketYAML+collectorYAML, "ECHO", filepath.Join(d.bin, "echo")), ReadyTimeout: 40 * time.Second,
		Logger: slog.New(slog.DiscardHandler), Args: map[string][]string{lab.Ambitd: {"--mesh-config", settings}},
	})
}

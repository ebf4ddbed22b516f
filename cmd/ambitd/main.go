// Command ambitd is the control plane of the mesh: it reads configuration,
// tells node proxies about workloads, services and policies, and signs
// certificates.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"

	"k8s.io/klog/v2"

	"github.com/ambit-mesh/ambit/internal/ops/lifecycle"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
	"github.com/ambit-mesh/ambit/internal/ops/version"
)

func main() {
	err := run(os.Args[1:])
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	default:
		fmt.Fprintln(os.Stderr, "ambitd:", err)
		os.Exit(1)
	}
}

// gcPercent trades collector time for memory: what is kept is the mesh, which
// is much, and what a change leaves behind is little, so that collections are
// rare nevertheless. GOGC has the last word, and GOMEMLIMIT holds beside it.
const gcPercent = 50

func run(args []string) error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if len(args) > 0 && strings.TrimLeft(args[0], "-") == "version" {
		fmt.Println(version.Get())
		return nil
	}
	cfg, err := parseFlags(args, os.Stderr)
	if err != nil {
		return err
	}
	logs, err := newLogging(cfg, os.Stdout)
	if err != nil {
		return err
	}
	// One for the whole process, which client-go writes to.
	klog.SetSlogLogger(logs.Logger("kubernetes"))
	ctx, stop := lifecycle.SignalContext(context.Background())
	defer stop()
	a, err := newApp(cfg, logs)
	if err != nil {
		return err
	}
	logs.Logger("ambitd").Info("starting", "version", version.Get().String(), "trust_domain", cfg.trustDomain, "cluster", cfg.clusterID, "xds", a.addr().String())
	return a.run(ctx)
}

func newLogging(cfg config, w io.Writer) (*logging.Logging, error) {
	format, err := logging.ParseFormat(cfg.logFormat)
	if err != nil {
		return nil, err
	}
	return logging.New(w, format, cfg.logLevel)
}

// Package selftest holds a node agent back until its node has proven that it
// redirects: other programs of the node, or its kernel, may be in the way, and a
// pod that is believed to be captured and is not speaks in plaintext.
package selftest

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Reasons of a Result.
const (
	ReasonProven = "RedirectionProven"
	ReasonFailed = "RedirectionFailed"
)

// again is the pause between attempts: the reason for a failure is rarely one
// that goes away by itself.
const again = 10 * time.Second

// Result is what is known of the node.
type Result struct {
	Ready           bool
	Reason, Message string
}

// Options are Await's.
type Options struct {
	// Test proves redirection, or says what is missing.
	Test func() error
	// Report is told every result that differs from the one before.
	Report     func(Result)
	Logger     *slog.Logger
	Registerer prometheus.Registerer
}

// Await returns when the node has passed the test, or the context has ended.
func Await(ctx context.Context, o Options) error {
	passed := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ambit_cni_redirection_ready",
		Help: "Whether this node has proven in throw-away network namespaces that it redirects; without that, no pod is enrolled.",
	})
	o.Registerer.MustRegister(passed)
	var last Result
	for {
		began := time.Now()
		r := Judge(o.Test())
		if r != last {
			o.Report(r)
			if !r.Ready {
				o.Logger.Error("this node does not redirect traffic; no pod is enrolled", "error", r.Message)
			}
			last = r
		}
		if r.Ready {
			passed.Set(1)
			o.Logger.Info("this node redirects traffic", "took", time.Since(began))
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(again):
		}
	}
}

// Judge makes a result of what a test returned.
func Judge(err error) Result {
	if err == nil {
		return Result{Ready: true, Reason: ReasonProven, Message: "connections out of and into a throw-away network namespace were redirected, also after a packet that opens none, and probes of the host were told from others"}
	}
	return Result{Reason: ReasonFailed, Message: "no pod of this node is enrolled: " + err.Error() +
		"; see whether the kernel has nf_tables with NAT and connection tracking (the list is in docs/operations.md), and whether another program of the node takes connections before nftables does"}
}

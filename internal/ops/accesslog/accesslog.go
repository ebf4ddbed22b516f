// Package accesslog writes one line for every connection that ended, with the
// fields and names of Istio's node proxy, and our reason beside them.
package accesslog

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Scope is the log scope of these lines; its level is changed as "access=…".
const Scope = "access"

// Party is one end of a connection. Empty fields are left out.
type Party struct {
	Addr      netip.AddrPort
	Workload  string
	Namespace string
	Identity  string // only when it was proven by mutual TLS
	Cluster   string
}

// Entry is one connection. Empty fields are left out.
type Entry struct {
	Src, Dst Party
	// Forwarded is the client that the end of the tunnel speaks for, as the tunnel says.
	Forwarded netip.Addr
	HBONEAddr string // what the tunnel was asked for: address or hostname, and port
	Service   string // hostname of the destination service
	Direction string // inbound or outbound
	TraceID   string
	Sent      uint64 // bytes from the initiator to the destination
	Received  uint64
	Duration  time.Duration
	Reason    reason.Reason
	Policy    string // namespace/name of the policy that decided, if one did
	DryRun    string // verdicts of policies that decide nothing, as policy=verdict
	Err       error
}

// Opened writes the start of a connection, at debug.
func Opened(l *slog.Logger, e *Entry) {
	if l.Enabled(context.Background(), slog.LevelDebug) {
		l.LogAttrs(context.Background(), slog.LevelDebug, "connection opened", e.attrs(nil, false)...)
	}
}

// Complete writes the end of a connection: at info, or at error when it failed.
func Complete(l *slog.Logger, e *Entry) {
	level := slog.LevelInfo
	if e.Err != nil {
		level = slog.LevelError
	}
	if !l.Enabled(context.Background(), level) {
		return
	}
	var room [24]slog.Attr
	l.LogAttrs(context.Background(), level, "connection complete", e.attrs(room[:0], true)...)
}

// Failed writes a connection that ended before anything about it was known but
// its addresses and the pod on this node.
func Failed(l *slog.Logger, e *Entry) {
	var room [12]slog.Attr
	attrs := e.Dst.attrs(e.Src.attrs(room[:0], &srcKeys), &dstKeys)
	attrs = append(attrs, slog.String("direction", e.Direction))
	l.LogAttrs(context.Background(), slog.LevelWarn, "connection failed", e.outcome(attrs)...)
}

func (e *Entry) attrs(a []slog.Attr, ended bool) []slog.Attr {
	a = e.Src.attrs(a, &srcKeys)
	if e.Forwarded.IsValid() {
		a = append(a, slog.Any("forwarded.for", e.Forwarded))
	}
	if e.Dst.Addr.IsValid() {
		a = append(a, slog.Any("dst.addr", e.Dst.Addr))
	}
	if e.HBONEAddr != "" {
		a = append(a, slog.Any("dst.hbone_addr", bare(e.HBONEAddr)))
	}
	a = str(a, "dst.service", e.Service)
	rest := e.Dst
	rest.Addr = netip.AddrPort{}
	a = rest.attrs(a, &dstKeys)
	a = str(a, "trace_id", e.TraceID)
	a = append(a, slog.String("direction", e.Direction))
	if !ended {
		return a
	}
	a = append(a, slog.Uint64("bytes_sent", e.Sent), slog.Uint64("bytes_recv", e.Received),
		slog.String("duration", strconv.FormatInt(e.Duration.Milliseconds(), 10)+"ms"))
	return e.outcome(a)
}

func (e *Entry) outcome(a []slog.Attr) []slog.Attr {
	a = str(a, "dry_run", e.DryRun)
	if e.Err != nil {
		a = append(a, slog.String("error", e.Err.Error()))
	}
	if e.Reason == reason.OK {
		return a
	}
	a = append(a, slog.String("reason", e.Reason.String()))
	a = str(a, "policy", e.Policy)
	return str(a, "hint", e.Reason.Info().Next)
}

// bare is a string that plain text shows without quotes, like an address.
type bare string

func (b bare) MarshalText() ([]byte, error) { return []byte(b), nil }

type partyKeys struct{ addr, workload, namespace, identity, cluster string }

var (
	srcKeys = partyKeys{"src.addr", "src.workload", "src.namespace", "src.identity", "src.cluster"}
	dstKeys = partyKeys{"dst.addr", "dst.workload", "dst.namespace", "dst.identity", "dst.cluster"}
)

func (p *Party) attrs(a []slog.Attr, k *partyKeys) []slog.Attr {
	if p.Addr.IsValid() {
		a = append(a, slog.Any(k.addr, p.Addr))
	}
	a = str(a, k.workload, p.Workload)
	a = str(a, k.namespace, p.Namespace)
	a = str(a, k.identity, p.Identity)
	return str(a, k.cluster, p.Cluster)
}

func str(a []slog.Attr, key, value string) []slog.Attr {
	if value == "" {
		return a
	}
	return append(a, slog.String(key, value))
}

// Rejection returns the refusal of a policy in the words that readers of Istio's log
// expect.
func Rejection(err *reason.Error) error {
	what := "allow policies exist, but none allowed"
	switch err.Reason { //nolint:exhaustive // policies give no other
	case reason.PolicyDenied:
		what = "explicitly denied by: " + err.Detail
	case reason.WaypointRequired:
		what = "only the waypoint of the destination is admitted, by: " + err.Detail
	case reason.PolicyUnavailable:
		what = "not received from the control plane: " + err.Detail
	}
	return fmt.Errorf("connection closed due to policy rejection: %s", what)
}

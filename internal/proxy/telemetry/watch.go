package telemetry

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/accesslog"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
	"github.com/ambit-mesh/ambit/internal/transport/relay"
)

// More is what most connections do not have. It is set before Begin, but for DryRun, which
// is set before End.
type More struct {
	// Watch gets the end of the connection; nil: nothing does.
	Watch Watcher
	// Tags returns the values that labels are made of; nil: there are none.
	Tags func(*accesslog.Entry) Tags
	// DryRun are the verdicts of policies that decide nothing.
	DryRun string

	up time.Duration // since epoch, when bytes could go; 0: they never could
}

// Watcher gets the end of a connection, on any goroutine.
type Watcher interface {
	// Ended is called once. It reports whether the connection has a line in the access
	// log. What e points to is valid during the call.
	Ended(e *End) (line bool)
}

// End is a connection that has ended.
type End struct {
	*accesslog.Entry
	Key *Key
	// Up is when both sides were connected; zero when they never were. Over is the end.
	Start, Up, Over time.Time
	// Result has the bytes as both reporters count them.
	Result relay.Result
	Trace  connect.Trace
	Target connect.Target // of the tunnel; zero without one
}

// Flag returns the value of the label response_flags.
func (e *End) Flag() string {
	r := e.Key.Reporter
	return r.flags()[r.flagIndex(e.Result.Reason)]
}

// watched is the end of a connection that is watched.
func (r *Recorder) watched(c *Conn, res relay.Result, policy string) {
	e := End{
		Entry: c.complete(res, policy), Key: &c.pair.key, Start: epoch.Add(c.start), Result: res, Trace: c.Trace, Target: c.Target,
	}
	e.Over = e.Start.Add(e.Duration)
	if up := c.More.up; up != 0 {
		e.Up = epoch.Add(up)
	}
	if c.More.Watch.Ended(&e) && c.Log.Permit(res.Reason == reason.OK && res.Err == nil) {
		accesslog.Complete(r.log, e.Entry)
	}
}

package explain

import (
	"fmt"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/internal/ztunnel/route"
	"github.com/ambit-mesh/ambit/internal/ztunnel/traffic"
)

// connectionRoute adds which route sends the connection to another service, and returns the
// number by which the backend with the largest share is chosen.
func (w *World) connectionRoute(v *verdict.Verdict, c traffic.Call) (roll uint64) {
	if c.Service == nil || !c.Service.Waypoint.IsZero() || len(c.Service.WeightedWaypoints) > 0 {
		return 0
	}
	t, failure, ok := w.Traffic.Route(c)
	if !ok {
		return 0
	}
	step := verdict.Step{Step: verdict.StepRoute}
	if t == nil {
		step.Object, step.Says, step.Decides = serviceObject(c.Service), "routes exist for the port, and none is for this: "+failure, true
		v.Steps = append(v.Steps, step)
		return 0
	}
	step.Object, step.Rule, _ = strings.Cut(t.Rule.Origin, ", ")
	step.Says = "it sends each connection to a backend by weight: " + strings.Join(traffic.Shares(t), ", ")
	if c.First.TLS {
		step.Says = "it takes " + c.First.String() + "; " + step.Says
	}
	v.Steps = append(v.Steps, step)
	return t.Largest()
}

// rule adds what the DestinationRule of the route says, and returns why it refuses.
func (w *World) rule(v *verdict.Verdict, r *route.Route) *reason.Error {
	g := r.Group
	if g == nil {
		return nil
	}
	set := g.Settings()
	step := verdict.Step{Step: verdict.StepPolicy, Object: g.Rule().String(), Rule: "host " + g.Rule().Host, Says: set.String()}
	var err *reason.Error
	if limit := int64(set.MaxConnections); limit > 0 {
		step.Says += fmt.Sprintf("; connections of its namespace from this node now: %d", g.Active())
		if g.Active() >= limit {
			err = reason.Errorf(reason.ResourceExhausted, "%s: maxConnections of the namespace at this node proxy, %d, is reached", g.Rule(), limit)
			step.Decides = true
		}
	}
	if set.Outlier != nil && r.Service != nil {
		step.Says += fmt.Sprintf("; endpoints ejected now: %d of %d", len(g.Ejected(time.Now())), w.Snapshot.CountEndpoints(r.Service))
	}
	v.Steps = append(v.Steps, step)
	return err
}

// limits adds what RateLimits say of the connection, and returns which refuses it now.
func (w *World) limits(v *verdict.Verdict, local *workload.Workload, c *rbac.Conn) (refused *reason.Error) {
	for _, f := range w.Traffic.Limited(local, c) {
		if f.Rate == nil {
			v.Steps = append(v.Steps, verdict.Step{Step: verdict.StepPolicy, Object: f.Limit.String(), Says: f.Limit.Service.String() + "; not now, as this is no connection"})
			continue
		}
		step := verdict.Step{Step: verdict.StepPolicy, Object: f.Limit.String(), Rule: f.Rate.String()}
		step.Says = fmt.Sprintf("room for %d more new connections now", f.Left)
		if f.Limit.DryRun {
			step.Says = "dry run: " + step.Says
		}
		if err := f.Error(); err != nil && refused == nil {
			refused, step.Decides = err, true
			step.Says += fmt.Sprintf("; for the next one in %v", f.Wait.Round(time.Millisecond))
		}
		v.Steps = append(v.Steps, step)
	}
	return refused
}

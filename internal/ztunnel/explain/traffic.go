package explain

import (
	"fmt"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/verdict"
	"github.com/ambit-mesh/ambit/internal/ztunnel/route"
	"github.com/ambit-mesh/ambit/internal/ztunnel/traffic"
)

// tcpRoute adds which TCPRoute sends the connection to another service, and returns the
// number by which the backend with the largest share is chosen.
func (w *World) tcpRoute(v *verdict.Verdict, client string, svc *workload.Service, port uint16) (roll uint64) {
	if svc == nil || !svc.Waypoint.IsZero() || len(svc.WeightedWaypoints) > 0 {
		return 0
	}
	t, ok := w.Traffic.Route(client, svc, port)
	if !ok {
		return 0
	}
	step := verdict.Step{Step: verdict.StepRoute}
	if t == nil {
		step.Object, step.Says, step.Decides = serviceObject(svc), "routes exist for the port, and no rule of them is in effect", true
		v.Steps = append(v.Steps, step)
		return 0
	}
	step.Object, step.Rule, _ = strings.Cut(t.Rule.Origin, ", ")
	step.Says = "it sends each connection to a backend by weight: " + strings.Join(traffic.Shares(t), ", ")
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

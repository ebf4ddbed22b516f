package routes

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/status"
)

// Controller is the controllerName of what the control plane writes into the
// status of Gateway API's objects. It is that of the GatewayClass of waypoints,
// so that tools for Istio find it.
const Controller = "istio.io/mesh-controller"

// Parents is the list of a route's status.
const Parents = "parents"

// Status is the part of a route's status that the control plane writes. 32
// entries are what the API takes.
var Status = status.Owned{Lists: []status.List{{Name: Parents, Key: "parentRef", Controller: Controller, Max: 32}}}

// Seen is a route's status as the object has it.
func Seen(s gatewayv1.RouteStatus) (out status.State) {
	for _, p := range s.Parents {
		e := status.Entry{List: Parents, Key: status.KeyOf(p.ParentRef), Controller: string(p.ControllerName), Conditions: status.SeenIn(p.Conditions)}
		out.Entries = append(out.Entries, e)
	}
	return out
}

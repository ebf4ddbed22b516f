package verdict

import (
	"strings"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Names of policies that the control plane makes for PeerAuthentications.
const (
	strictPolicy    = "istio_converted_static_strict"
	convertedPrefix = "converted_peer_authentication_"
)

// Derived is what a policy of a node proxy means that is no AuthorizationPolicy.
type Derived struct {
	Object             string
	Refuses, Satisfied string // what it says when it matches, and when not
	Waypoint           bool   // only a waypoint is admitted
}

// PolicyObject returns the object that a policy of a node proxy was made from. For one
// that is no AuthorizationPolicy it also returns what the policy means.
func PolicyObject(key string) (object string, d *Derived) {
	ns, name, _ := strings.Cut(key, "/")
	strict := Derived{Refuses: "mutual TLS is required, and the connection has no identity", Satisfied: "it does not refuse: the connection has an identity, or the port needs none"}
	switch {
	case name == strictPolicy:
		strict.Object = "PeerAuthentication (mode STRICT)"
		return strict.Object, &strict
	case strings.HasPrefix(name, convertedPrefix):
		strict.Object = "PeerAuthentication " + ns + "/" + strings.TrimPrefix(name, convertedPrefix)
		return strict.Object, &strict
	case strings.HasPrefix(name, wellknown.DerivedWaypointPolicy):
		return "waypoint of the destination", &Derived{
			Object: "waypoint of the destination", Waypoint: true,
			Refuses:   "only the waypoint is admitted, and the connection goes around it",
			Satisfied: "it does not refuse: the waypoint connects, or the port or the client is excepted",
		}
	}
	return "AuthorizationPolicy " + key, nil
}

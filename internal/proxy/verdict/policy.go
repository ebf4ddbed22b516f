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

// PolicyObject returns the object that a policy of a node proxy was made from. For one
// that is no AuthorizationPolicy it also returns what the policy refuses.
func PolicyObject(key string) (object, about string) {
	ns, name, _ := strings.Cut(key, "/")
	switch {
	case name == strictPolicy:
		return "PeerAuthentication (mode STRICT)", "mutual TLS is required: a connection without an identity is refused"
	case strings.HasPrefix(name, convertedPrefix):
		return "PeerAuthentication " + ns + "/" + strings.TrimPrefix(name, convertedPrefix), "mutual TLS is required on this port: a connection without an identity is refused"
	case strings.HasPrefix(name, wellknown.DerivedWaypointPolicy):
		return "waypoint of the destination", "only the waypoint is admitted: the connection went around it"
	}
	return "AuthorizationPolicy " + key, ""
}

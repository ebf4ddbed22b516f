// Package status is how the control plane answers a user about an object they
// wrote: is it accepted, where is it enforced, and if not, why not and what
// to do next.
package status

import "fmt"

// Types of conditions, those of Istio where it has one.
const (
	Accepted         = "Accepted"
	ZtunnelAccepted  = "ZtunnelAccepted"
	WaypointAccepted = "WaypointAccepted"
	WaypointBound    = "istio.io/WaypointBound"
	WaypointMissing  = "istio.io/WaypointMissing"
	// VisibilityApplied tells of a ServiceEntry who sees it. It is always true;
	// the reason is the answer.
	VisibilityApplied = "istio.io/VisibilityApplied"
	// ClaimsAccepted is about the hosts and addresses of a ServiceEntry. It is
	// there only when some are not the entry's, and false then.
	ClaimsAccepted = "ClaimsAccepted"
	// InMesh tells for a workload whether traffic to it is mutual TLS.
	InMesh = "ambit/InMesh"
)

// Reasons of conditions.
const (
	ReasonAccepted                = "Accepted"
	ReasonInvalid                 = "Invalid"
	ReasonPartiallyInvalid        = "PartiallyInvalid"
	ReasonUnsupportedValue        = "UnsupportedValue"
	ReasonTargetNotFound          = "TargetNotFound"
	ReasonAncestorNotBound        = "AncestorNotBound"
	ReasonSuperseded              = "Superseded"
	ReasonPending                 = "Pending"
	ReasonWaypointAccepted        = "WaypointAccepted"
	ReasonWaypointIsNotReady      = "WaypointIsNotReady"
	ReasonAttachmentDenied        = "AttachmentDenied"
	ReasonUnsupportedTrafficType  = "UnsupportedTrafficType"
	ReasonCrossNamespaceWaypoint  = "CrossNamespaceWaypointForbidden"
	ReasonCanaryInvalidWeight     = "CanaryInvalidWeight"
	ReasonCanarySameAsPrimary     = "CanarySameAsPrimary"
	ReasonCanaryNotHonoured       = "CanaryNotHonoured"
	ReasonNoWaypointForWildcard   = "NoWaypointForWildcardService"
	ReasonNoWaypointForRacing     = "NoWaypointForRacingConnectStrategy"
	ReasonPublic                  = "Public"
	ReasonNamespace               = "Namespace"
	ReasonNone                    = "None"
	ReasonNotVisible              = "NotVisible"
	ReasonEnforcedByWaypoint      = "EnforcedByWaypoint"
	ReasonRedirected              = "Redirected"
	ReasonNativeTunnel            = "NativeTunnel"
	ReasonNotRedirected           = "NotRedirected"
	ReasonHostNetwork             = "HostNetwork"
	ReasonNoAddress               = "NoAddress"
	ReasonCompleted               = "Completed"
	ReasonOwnedByOthers           = "OwnedByOthers"
	ReasonClaimedEarlier          = "ClaimedEarlier"
	ReasonMerged                  = "Merged"
	ReasonHostOfService           = "HostOfService"
	ReasonUnsupportedEndpointType = "UnsupportedEndpoint"
)

// Values of Condition.Status.
const (
	True    = "True"
	False   = "False"
	Unknown = "Unknown"
)

// Condition is one statement about an object.
type Condition struct {
	Type    string `json:"type"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Yes makes a condition with status True.
func Yes(typ, reason, format string, args ...any) Condition {
	return Condition{typ, True, reason, fmt.Sprintf(format, args...)}
}

// No makes a condition with status False.
func No(typ, reason, format string, args ...any) Condition {
	return Condition{typ, False, reason, fmt.Sprintf(format, args...)}
}

// Maybe makes a condition with status Unknown.
func Maybe(typ, reason, format string, args ...any) Condition {
	return Condition{typ, Unknown, reason, fmt.Sprintf(format, args...)}
}

// Object is everything there is to say about one object.
type Object struct {
	Kind       string      `json:"kind"`
	Namespace  string      `json:"namespace,omitempty"`
	Name       string      `json:"name"`
	Conditions []Condition `json:"conditions"`
	File       string      `json:"file,omitempty"`
	Line       int         `json:"line,omitempty"`
}

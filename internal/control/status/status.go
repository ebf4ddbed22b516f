// Package status is how the control plane answers a user about an object they
// wrote: is it accepted, where is it enforced, and if not, why not and what
// to do next.
package status

import (
	"fmt"

	"github.com/ambit-mesh/ambit/api/admin"
)

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
	// ResolvedRefs, of a route or a Gateway, is about the objects that it names.
	ResolvedRefs = "ResolvedRefs"
	// PartiallyInvalid is about rules of a route that are not executed as they
	// are written. It is there only when there are some.
	PartiallyInvalid = "PartiallyInvalid"
	// ResolvedWaypoints is about the waypoint that executes a route.
	ResolvedWaypoints = "ResolvedWaypoints"
	// Programmed reports of a Gateway that its proxies run, and Conflicted of a
	// listener that another one has its place.
	Programmed = "Programmed"
	Conflicted = "Conflicted"
	// KeysFetched is about the keys of the issuers that a RequestAuthentication names.
	KeysFetched = "ambit/KeysFetched"
	// InMesh tells for a workload whether traffic to it is mutual TLS.
	InMesh = "ambit/InMesh"
	// WaypointOnly reports of a workload which peers it admits because of its
	// waypoints. It is there only when it does not admit everybody.
	WaypointOnly = "ambit/WaypointOnly"
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
	ReasonWaypointRequired        = "WaypointRequired"
	ReasonWaypointIsNotReady      = "WaypointIsNotReady"
	ReasonAttachmentDenied        = "AttachmentDenied"
	ReasonUnsupportedTrafficType  = "UnsupportedTrafficType"
	ReasonCrossNamespaceWaypoint  = "CrossNamespaceWaypointForbidden"
	ReasonCanaryInvalidWeight     = "CanaryInvalidWeight"
	ReasonCanarySameAsPrimary     = "CanarySameAsPrimary"
	ReasonCanaryNotHonoured       = "CanaryNotHonoured"
	ReasonNoWaypointForWildcard   = "NoWaypointForWildcardService"
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
	ReasonResolvedRefs            = "ResolvedRefs"
	ReasonBackendNotFound         = "BackendNotFound"
	ReasonRefNotPermitted         = "RefNotPermitted"
	ReasonInvalidKind             = "InvalidKind"
	ReasonNoMatchingParent        = "NoMatchingParent"
	ReasonNotAllowedByListeners   = "NotAllowedByListeners"
	ReasonResolvedWaypoints       = "ResolvedWaypoints"
	ReasonProgrammed              = "Programmed"
	ReasonAddressNotAssigned      = "AddressNotAssigned"
	ReasonNoResources             = "NoResources"
	ReasonNoConflicts             = "NoConflicts"
	ReasonConflicted              = "Conflicted"
	ReasonUnsupportedProtocol     = "UnsupportedProtocol"
	ReasonListenersNotValid       = "ListenersNotValid"
	ReasonAddressNotUsable        = "AddressNotUsable"
	ReasonInvalidParameters       = "InvalidParameters"
	ReasonKeysFetched             = "KeysFetched"
	ReasonKeysOutdated            = "KeysOutdated"
	ReasonKeysUnavailable         = "KeysUnavailable"
)

// Values of Condition.Status.
const (
	True    = "True"
	False   = "False"
	Unknown = "Unknown"
)

// Condition is one statement about an object.
type Condition = admin.Condition

// Yes makes a condition with status True.
func Yes(typ, reason, format string, args ...any) Condition {
	return Condition{Type: typ, Status: True, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// No makes a condition with status False.
func No(typ, reason, format string, args ...any) Condition {
	return Condition{Type: typ, Status: False, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Maybe makes a condition with status Unknown.
func Maybe(typ, reason, format string, args ...any) Condition {
	return Condition{Type: typ, Status: Unknown, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

package analysis

import "github.com/ambit-mesh/ambit/internal/source"

// code is one kind of finding. Numbers are never given twice; docs/analysis.md
// explains each.
type code struct {
	id       string
	name     string
	severity Severity
	istio    string // the code of istioctl that says the same
}

var (
	codeMalformed          = code{"AMB0001", "Malformed", Error, "IST0106"}
	codeInvalid            = code{"AMB0002", "InvalidValue", Error, "IST0106"}
	codeUnread             = code{"AMB0003", "KindWithoutEffect", Warning, "IST0167"}
	codeIgnored            = code{"AMB0004", "PartWithoutEffect", Warning, "IST0133"}
	codeNarrowed           = code{"AMB0005", "AllowsLess", Warning, ""}
	codeWidened            = code{"AMB0006", "DeniesMore", Warning, ""}
	codeDeniesAll          = code{"AMB0007", "DeniesEverything", Error, ""}
	codeElsewhere          = code{"AMB0008", "NeedsWaypoint", Info, ""}
	codeIneffectual        = code{"AMB0009", "DecidesNothing", Warning, "IST0167"}
	codeSuperseded         = code{"AMB0010", "ConflictingPeerAuthentications", Warning, ""}
	codeDuplicateHost      = code{"AMB0011", "DuplicateHost", Warning, ""}
	codeSelectsNothing     = code{"AMB0012", "SelectsNothing", Warning, "IST0127"}
	codeNoNamespace        = code{"AMB0013", "NamespaceNotFound", Warning, "IST0101"}
	codeNoAccount          = code{"AMB0014", "ServiceAccountNotFound", Warning, "IST0101"}
	codeNoTarget           = code{"AMB0015", "TargetNotFound", Error, "IST0101"}
	codeNoWaypoint         = code{"AMB0016", "WaypointNotFound", Error, "IST0101"}
	codeWaypointNotReady   = code{"AMB0017", "WaypointNotReady", Warning, "IST0171"}
	codeWaypointRefuses    = code{"AMB0018", "WaypointDoesNotServe", Error, "IST0171"}
	codeHostNetwork        = code{"AMB0019", "HostNetworkPod", Info, ""}
	codeSidecar            = code{"AMB0020", "SidecarInAmbientNamespace", Warning, ""}
	codeExcluded           = code{"AMB0021", "ExcludedNamespace", Warning, ""}
	codeBlocksHBONE        = code{"AMB0022", "NetworkPolicyBlocksHBONE", Error, ""}
	codeBlocksProbes       = code{"AMB0023", "NetworkPolicyOmitsProbes", Info, ""}
	codeReservedPort       = code{"AMB0024", "ReservedPort", Error, ""}
	codeUnmeshedClients    = code{"AMB0025", "StrictWithUnmeshedPods", Info, ""}
	codeForeignTrustDomain = code{"AMB0026", "OtherTrustDomain", Warning, ""}
	codeEnforcedNowhere    = code{"AMB0027", "EnforcedNowhere", Error, "IST0167"}
	codeUnknownMode        = code{"AMB0028", "UnknownDataplaneMode", Error, ""}
	codeNotRedirected      = code{"AMB0029", "NotRedirected", Error, ""}
	codeCondition          = code{"AMB0030", "NegativeCondition", Warning, "IST0171"}
	codeNoRevision         = code{"AMB0031", "RevisionNotFound", Error, ""}
	codeOwnedByOthers      = code{"AMB0032", "OwnedByOthers", Warning, ""}
	codeClaimedEarlier     = code{"AMB0033", "ClaimedEarlier", Warning, ""}
	codeRangeOverOthers    = code{"AMB0034", "RangeContainsOthers", Info, ""}
	codeEndpointIsPod      = code{"AMB0035", "EndpointIsPod", Info, ""}
	codeNotDiscovered      = code{"AMB0036", "NamespaceNotDiscovered", Warning, ""}

	codeBackendRefused       = code{"AMB0037", "BackendRefused", Error, "IST0101"}
	codeRouteWithoutWaypoint = code{"AMB0038", "RouteWithoutWaypoint", Warning, ""}
	codeRuleNotExecuted      = code{"AMB0039", "RuleNotExecuted", Error, "IST0106"}
	codeAuthorizer           = code{"AMB0040", "AuthorizerNotUsable", Error, ""}
	codeUnknownOutbound      = code{"AMB0041", "UnknownOutboundPolicy", Error, ""}
	codeHostsWithoutDNS      = code{"AMB0042", "HostsWithoutLookups", Warning, ""}
)

// codes lists all of them, in order.
var codes = []code{
	codeMalformed, codeInvalid, codeUnread, codeIgnored, codeNarrowed, codeWidened, codeDeniesAll, codeElsewhere,
	codeIneffectual, codeSuperseded, codeDuplicateHost, codeSelectsNothing, codeNoNamespace, codeNoAccount, codeNoTarget,
	codeNoWaypoint, codeWaypointNotReady, codeWaypointRefuses, codeHostNetwork, codeSidecar, codeExcluded,
	codeBlocksHBONE, codeBlocksProbes, codeReservedPort, codeUnmeshedClients, codeForeignTrustDomain,
	codeEnforcedNowhere, codeUnknownMode, codeNotRedirected, codeCondition, codeNoRevision,
	codeOwnedByOthers, codeClaimedEarlier, codeRangeOverOthers, codeEndpointIsPod, codeNotDiscovered,
	codeBackendRefused, codeRouteWithoutWaypoint, codeRuleNotExecuted, codeAuthorizer, codeUnknownOutbound, codeHostsWithoutDNS,
}

func (c code) finding(key source.Key, field, message, next string) Finding {
	return Finding{Code: c.id, Istio: c.istio, Severity: c.severity, Object: key, Field: field, Message: message, Next: next}
}

// Name returns the human-readable name of a code, empty for a code that does not exist.
func Name(id string) string {
	for _, c := range codes {
		if c.id == id {
			return c.name
		}
	}
	return ""
}

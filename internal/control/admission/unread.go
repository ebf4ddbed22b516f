package admission

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// none are the kinds of Istio's API that the mesh does not read, by group,
// with what to use instead. They are stored nevertheless: a waypoint or
// gateway of another make may read them, and charts ship them for everybody.
var none = map[schema.GroupKind]string{
	{Group: "networking.istio.io", Kind: "VirtualService"}:   "use an HTTPRoute, GRPCRoute, TLSRoute or TCPRoute with a waypoint",
	{Group: "networking.istio.io", Kind: "Gateway"}:          "use a Gateway of gateway.networking.k8s.io",
	{Group: "networking.istio.io", Kind: "Sidecar"}:          "there are no sidecars to scope; remove it",
	{Group: "networking.istio.io", Kind: "EnvoyFilter"}:      "there is no Envoy to patch and never will be; use routes and filters of the Gateway API at a waypoint",
	{Group: "networking.istio.io", Kind: "ProxyConfig"}:      "configure ztunnel by its environment",
	{Group: "networking.istio.io", Kind: "WorkloadGroup"}:    "write a WorkloadEntry for each machine",
	{Group: "extensions.istio.io", Kind: "WasmPlugin"}:       "use a waypoint that runs it",
	{Group: "extensions.istio.io", Kind: "TrafficExtension"}: "use a waypoint that runs it",
}

// unread is the finding about a kind that has no effect.
func unread(group, kind string) (Finding, bool) {
	next, known := none[schema.GroupKind{Group: group, Kind: kind}]
	if !known {
		return Finding{}, false
	}
	return Finding{Unread, "", fmt.Sprintf("%s has no effect in this mesh: nothing reads it", kind), next}, true
}

// UnreadKinds lists the kinds that are known and have no effect.
func UnreadKinds() []schema.GroupKind {
	return slices.SortedFunc(maps.Keys(none), func(a, b schema.GroupKind) int {
		return strings.Compare(a.String(), b.String())
	})
}

// CheckKind says of an object whether its whole kind has no effect.
func CheckKind(gk schema.GroupKind) []Finding {
	if f, known := unread(gk.Group, gk.Kind); known {
		return []Finding{f}
	}
	return nil
}

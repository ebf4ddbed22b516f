package gateways

import (
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/control/status"
)

const supportedFeatures = "supportedFeatures"

// Features are those of Gateway API that waypoints have and that a test of its suite for
// meshes is about. They are sorted, as the API demands. The conformance test claims the
// features that the status of the class has, so that one that fails cannot stay here.
var Features = []string{
	"GRPCRoute",
	"HTTPRoute",
	"HTTPRoute303RedirectStatusCode",
	"HTTPRoute307RedirectStatusCode",
	"HTTPRoute308RedirectStatusCode",
	"HTTPRouteParentRefPort",
	"HTTPRouteResponseHeaderModification",
	"Mesh",
	"MeshClusterIPMatching",
	"MeshConsumerRoute",
	"MeshHTTPRouteBackendRequestHeaderModification",
	"MeshHTTPRouteNamedRouteRule",
	"MeshHTTPRouteQueryParamMatching",
	"MeshHTTPRouteRedirectPath",
	"MeshHTTPRouteRedirectPort",
	"MeshHTTPRouteRewritePath",
	"MeshHTTPRouteSchemeRedirect",
}

// ClassFields returns the other fields of the status of a GatewayClass that OwnClass
// accepts: what its Gateways can do. Nothing is known of gateways of other networks.
func ClassFields(c *gatewayv1.GatewayClass) []status.Field {
	if c.Spec.ControllerName != controllerWaypoint || c.Spec.ParametersRef != nil {
		return featureField(nil)
	}
	list := make([]gatewayv1.SupportedFeature, 0, len(Features))
	for _, f := range Features {
		list = append(list, gatewayv1.SupportedFeature{Name: gatewayv1.FeatureName(f)})
	}
	return featureField(list)
}

// featureField is the field with features; it is left out for none.
func featureField(list []gatewayv1.SupportedFeature) []status.Field {
	if len(list) == 0 {
		return nil
	}
	return []status.Field{{Name: supportedFeatures, JSON: status.KeyOf(list)}}
}

// SeenClass is a GatewayClass's status as the object has it.
func SeenClass(c *gatewayv1.GatewayClass) status.State {
	return status.State{Conditions: status.SeenIn(c.Status.Conditions), Fields: featureField(c.Status.SupportedFeatures)}
}

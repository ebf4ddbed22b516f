package coverage

import (
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
	securityv1beta1 "istio.io/api/security/v1beta1"
	telemetryv1alpha1 "istio.io/api/telemetry/v1alpha1"
)

func paths(list ...string) []string { return list }

// below puts a path before each of a list.
func below(path string, list ...string) (out []string) {
	for _, p := range list {
		out = append(out, path+"."+p)
	}
	return out
}

// notSent is what becomes of providers of kinds that waypoints have not.
const notSent = "the log of `ambitd` and the status of what names it: waypoints send nothing to it"

var objects = []object{
	{"AuthorizationPolicy", &securityv1beta1.AuthorizationPolicy{}, []field{
		{paths("selector.matchLabels{}"), driven, "both.TestPolicy scenario.TestWhyAgrees", "selects workloads; acts at their node proxies, and the status says so"},
		{append(below("targetRef", "group", "kind", "name"), below("targetRefs[]", "group", "kind", "name")...), driven, "both.TestGatewayPolicies targets.TestTargets", "Service, ServiceEntry, Gateway, GatewayClass; others: `Accepted` is False"},
		{paths("targetRef.namespace", "targetRefs[].namespace"), refused, "targets.TestTargets admission.TestReview", "only the policy's own namespace: `Accepted` is False"},
		{below("rules[].from[].source", "principals[]", "notPrincipals[]", "namespaces[]", "notNamespaces[]", "serviceAccounts[]", "notServiceAccounts[]", "ipBlocks[]", "notIpBlocks[]", "trustDomains[]", "notTrustDomains[]"), driven, "both.TestFieldsOfPolicies policy.TestAttributes policy.TestTable", ""},
		{below("rules[].from[].source", "requestPrincipals[]", "notRequestPrincipals[]"), driven, "both.TestTokens both.TestAuthenticationPage policy.TestAttributes", "of verified tokens"},
		{below("rules[].from[].source", "remoteIpBlocks[]", "notRemoteIpBlocks[]"), driven, "both.TestFieldsOfPolicies policy.TestAttributes", "the client's address"},
		{below("rules[].to[].operation", "hosts[]", "notHosts[]", "ports[]", "notPorts[]", "methods[]", "notMethods[]", "paths[]", "notPaths[]"), driven, "both.TestAuthorizationPage policy.TestAttributes", "paths with `{*}` and `{**}`"},
		{below("rules[].when[]", "key", "values[]", "notValues[]"), driven, "both.TestFieldsOfPolicies policy.TestAttributes policy.TestTable", "what no waypoint has narrows or denies: `Accepted` says so"},
		{paths("action"), driven, "both.TestAuthorizationPage both.TestExternalAuthorization scenario.TestExternalAuthorization", "`ALLOW`, `DENY`, `AUDIT`, `CUSTOM`"},
		{paths("provider.name"), driven, "both.TestExternalAuthorization scenario.TestExternalAuthorization", "one that is unknown or has a mistake denies: `Accepted` says so"},
	}},
	{"RequestAuthentication", &securityv1beta1.RequestAuthentication{}, []field{
		{paths("selector.matchLabels{}"), refused, "registry.TestKeys", "node proxies verify no tokens: `Accepted` is False"},
		{append(below("targetRef", "group", "kind", "name"), below("targetRefs[]", "group", "kind", "name")...), driven, "both.TestTokens scenario.TestTokens targets.TestTokens", "as of an AuthorizationPolicy"},
		{paths("targetRef.namespace", "targetRefs[].namespace"), refused, "targets.TestTargets admission.TestReview", "only the object's own namespace: `Accepted` is False"},
		{below("jwtRules[]", "issuer", "audiences[]", "jwksUri"), driven, "both.TestAuthenticationPage scenario.TestTokens scenario.TestForgedTokens", ""},
		{below("jwtRules[]", "jwks", "fromHeaders[].name", "fromHeaders[].prefix", "fromParams[]", "fromCookies[]"), driven, "both.TestAuthenticationPage", ""},
		{below("jwtRules[]", "forwardOriginalToken", "spaceDelimitedClaims[]"), driven, "both.TestFieldsOfTokens coverage.TestTokenRules", "what they do: `TestOutputs` of `l7/authn`, `TestClaims` of `l7/jwt`"},
		{below("jwtRules[]", "outputPayloadToHeader", "outputClaimToHeaders[].header", "outputClaimToHeaders[].claim"), driven, "both.TestFieldsOfTokens scenario.TestTokens", "names that proxies use are refused"},
		{paths("jwtRules[].timeout"), refused, "targets.TestTokens", "`Accepted` says so: no request waits while keys are fetched"},
	}},
	{"Telemetry", &telemetryv1alpha1.Telemetry{}, []field{
		{paths("selector.matchLabels{}"), driven, "scenario.TestTelemetryOfConnections both.TestConnectionsPage targets.TestLayersOfNodes coverage.TestSelectorOfTelemetry", "by node proxies, for [connections](../observability-connections.md) of the pods; waypoints do not honour it"},
		{append(below("targetRef", "group", "kind", "name"), below("targetRefs[]", "group", "kind", "name")...), driven, "both.TestTraces both.TestObservabilityPage targets.TestLayersOfGateways", ""},
		{paths("targetRef.namespace", "targetRefs[].namespace"), refused, "targets.TestTargets admission.TestReview", "only the object's own namespace: `Accepted` is False"},
		{paths("tracing[].match.mode", "metrics[].overrides[].match.mode", "accessLogging[].match.mode"), driven, "both.TestMetricOverrides both.TestAccessLogging scenario.TestTelemetryOfConnections both.TestConnectionsPage telemetry.TestTranslate", "at waypoints `SERVER`: a rule for clients is reported, and has no effect there; at node proxies, half of each connection"},
		{paths("tracing[].providers[].name", "accessLogging[].providers[].name"), driven, "both.TestTraces both.TestAccessLogging parts.TestCollector", "of tracing, the first; of both, what is unknown is reported"},
		{paths("tracing[].randomSamplingPercentage"), driven, "both.TestTraces scenario.TestSpans parts.TestCollector", ""},
		{paths("tracing[].disableSpanReporting", "tracing[].disableContextPropagation", "tracing[].enableIstioTags"), driven, "both.TestTraceSwitches telemetry.TestTranslate telemetry.TestNodes", "`disableContextPropagation` at waypoints alone"},
		{below("tracing[].customTags{}", "literal.value", "environment.name", "environment.defaultValue", "header.name", "header.defaultValue"), driven, "both.TestTraces both.TestObservabilityPage both.TestConnectionsPage telemetry.TestTranslate telemetry.TestNodes", "of connections, a header has its default"},
		{paths("tracing[].customTags{}.formatter.value"), refused, "telemetry.TestTranslate", "reported in `Accepted`"},
		{paths("tracing[].useRequestIdForTraceSampling"), refused, "telemetry.TestTranslate", "`true` is reported in `Accepted`"},
		{paths("metrics[].providers[].name"), driven, "both.TestFieldsOfProviders telemetry.TestTranslate", "Prometheus; others are reported"},
		{below("metrics[].overrides[]", "match.metric", "disabled", "tagOverrides{}.operation", "tagOverrides{}.value"), driven, "both.TestMetricOverrides both.TestObservabilityPage scenario.TestTelemetryOfConnections both.TestConnectionsPage", "values are CEL; a mistake is reported, and no override of the object is in effect"},
		{paths("metrics[].overrides[].match.customMetric", "metrics[].reportingInterval"), refused, "telemetry.TestTranslate", "reported in `Accepted`"},
		{paths("accessLogging[].disabled", "accessLogging[].filter.expression"), driven, "both.TestObservabilityPage both.TestAccessLogging scenario.TestTelemetryOfConnections both.TestConnectionsPage", "a filter of requests acts at waypoints alone"},
	}},
	{"MeshConfig: extensionProviders[]", &meshv1alpha1.MeshConfig_ExtensionProvider{}, []field{
		{paths("name"), driven, "both.TestExternalAuthorization meshconfig.TestBadProviders", ""},
		{append(below("envoyExtAuthzHttp", "service", "port", "pathPrefix", "includeRequestHeadersInCheck[]", "includeAdditionalHeadersInCheck{}", "headersToUpstreamOnAllow[]", "headersToDownstreamOnDeny[]", "headersToDownstreamOnAllow[]"),
			"envoyExtAuthzGrpc.service", "envoyExtAuthzGrpc.port"), driven, "both.TestFieldsOfAuthorizers scenario.TestExternalAuthorization parts.TestOPA", ""},
		{append(below("envoyExtAuthzHttp", "timeout", "failOpen", "statusOnError", "includeRequestBodyInCheck.maxRequestBytes"),
			below("envoyExtAuthzGrpc", "timeout", "failOpen", "statusOnError", "includeRequestBodyInCheck.maxRequestBytes")...), driven, "both.TestFieldsOfAuthorizers scenario.TestAttacksOnExternalAuthorization", ""},
		{append(below("envoyExtAuthzHttp", "clearRouteCache", "includeHeadersInCheck[]", "includeRequestBodyInCheck.allowPartialMessage"),
			below("envoyExtAuthzGrpc", "clearRouteCache", "includeRequestBodyInCheck.allowPartialMessage", "includeRequestBodyInCheck.packAsBytes")...), driven, "both.TestFieldsOfAuthorizers meshconfig.TestProviders", ""},
		{paths("envoyExtAuthzHttp.includeRequestBodyInCheck.packAsBytes"), without, "meshconfig.TestProviders", "a body by HTTP is bytes"},
		{append(below("opentelemetry", "service", "port"), "opentelemetry.http.path", "opentelemetry.http.headers[].name", "opentelemetry.http.headers[].value"), driven, "both.TestTraces parts.TestCollector", ""},
		{paths("opentelemetry.http.timeout", "opentelemetry.grpc.timeout", "opentelemetry.grpc.initialMetadata[].name", "opentelemetry.grpc.initialMetadata[].value"), driven, "both.TestFieldsOfProviders telemetry.TestReadMesh", ""},
		{paths("opentelemetry.http.headers[].envName", "opentelemetry.grpc.initialMetadata[].envName"), refused, "telemetry.TestReadMesh", "the provider is not used, by the log of `ambitd` and the status of what names it"},
		{paths("opentelemetry.maxTagLength", "opentelemetry.resourceDetectors.*", "opentelemetry.serviceAttributeEnrichment", "opentelemetry.dynatraceSampler.*"), refused, "coverage.TestRefusedFieldsOfProviders", "the log of `ambitd`"},
		{paths("envoyFileAccessLog.path"), driven, "both.TestAccessLogging both.TestObservabilityPage telemetry.TestReadMesh", "`/dev/stdout`; others are reported"},
		{paths("envoyFileAccessLog.logFormat.text", "envoyFileAccessLog.logFormat.labels", "envoyOtelAls.service", "envoyOtelAls.port", "envoyOtelAls.logFormat.text", "envoyOtelAls.logFormat.labels"), driven, "both.TestAccessLogging parts.TestCollector", ""},
		{paths("envoyFileAccessLog.omitEmptyValues"), driven, "both.TestFieldsOfProviders coverage.TestOmitEmptyValues", ""},
		{paths("envoyOtelAls.logName"), refused, "telemetry.TestReadMesh", "the log of `ambitd`"},
		{paths("prometheus"), driven, "both.TestFieldsOfProviders telemetry.TestTranslate", "every waypoint serves metrics"},
		{paths("zipkin.*", "lightstep.*", "datadog.*", "stackdriver.*", "opencensus.*", "skywalking.*", "envoyHttpAls.*", "envoyTcpAls.*", "sds.*"), refused, "coverage.TestRefusedFieldsOfProviders", notSent},
	}},
}

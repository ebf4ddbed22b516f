package source

import (
	"google.golang.org/protobuf/proto"
	apisecurity "istio.io/api/security/v1beta1"

	egresspb "github.com/ambit-mesh/ambit/api/egress"
)

// The functions here turn the spec of a policy that cannot be read into the
// strictest one for the same workloads, so that a policy of a newer version
// does not open what it was made to protect.

func closeAuthorization(spec proto.Message, fields map[string]any, read func(map[string]any) error) bool {
	s := spec.(*apisecurity.AuthorizationPolicy)
	delete(fields, "rules")
	if read(fields) != nil {
		return false
	}
	switch s.Action {
	case apisecurity.AuthorizationPolicy_ALLOW:
		return true // with no rule it allows nothing
	case apisecurity.AuthorizationPolicy_DENY:
		s.Rules = []*apisecurity.Rule{{}}
		return true
	case apisecurity.AuthorizationPolicy_AUDIT, apisecurity.AuthorizationPolicy_CUSTOM: // neither has a strictest rule
	}
	return false
}

func closePeer(spec proto.Message, fields map[string]any, read func(map[string]any) error) bool {
	s := spec.(*apisecurity.PeerAuthentication)
	delete(fields, "mtls")
	delete(fields, "portLevelMtls")
	if read(fields) != nil {
		return false
	}
	s.Mtls = &apisecurity.PeerAuthentication_MutualTLS{Mode: apisecurity.PeerAuthentication_MutualTLS_STRICT}
	return true
}

// closeTokens accepts no token: a rule without an issuer and without keys.
func closeTokens(spec proto.Message, fields map[string]any, read func(map[string]any) error) bool {
	s := spec.(*apisecurity.RequestAuthentication)
	delete(fields, "jwtRules")
	delete(fields, "jwt_rules")
	if read(fields) != nil {
		return false
	}
	s.JwtRules = []*apisecurity.JWTRule{{}}
	return true
}

// closeEgress allows nothing outside of the mesh, and no UDP.
func closeEgress(spec proto.Message, fields map[string]any, read func(map[string]any) error) bool {
	s := spec.(*egresspb.EgressPolicySpec)
	for field := range fields {
		if field != "selector" {
			delete(fields, field)
		}
	}
	if read(fields) != nil {
		return false
	}
	s.Udp = egresspb.EgressPolicySpec_Refuse
	return true
}

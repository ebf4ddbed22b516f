package admission

import (
	"fmt"
	"strings"

	securityv1 "istio.io/client-go/pkg/apis/security/v1"

	"github.com/ambit-mesh/ambit/internal/control/policy"
)

func (c *checker) requestAuthentication(p *securityv1.RequestAuthentication) {
	c.selector("spec.selector.matchLabels", p.Spec.Selector)
	c.enforced(p.Namespace, &p.Spec)
	if p.Spec.TargetRef == nil && len(p.Spec.TargetRefs) == 0 {
		c.say(Ignored, "", "name the Service or the waypoint in targetRefs", "no token is looked at: node proxies see connections and not requests")
	}
	if len(p.Spec.JwtRules) == 0 {
		c.say(Ineffectual, "spec.jwtRules", "add a rule", "without rules no token is looked at")
	}
	for i, r := range p.Spec.JwtRules {
		at := fmt.Sprintf("spec.jwtRules[%d]", i)
		for _, m := range policy.CheckTokenRule(r) {
			field, what, _ := strings.Cut(m, ": ")
			c.invalid(at+"."+field, "%s", what)
		}
		if r.GetTimeout() != nil {
			c.say(Ignored, at+".timeout", "remove it", "keys are fetched by the control plane, which waits 5 seconds")
		}
	}
}

package routes

import (
	"fmt"
	"time"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/wire"
)

// defaultSession is the name of sessions whose author gives none.
const defaultSession = "ambit-session"

// session reads how requests are kept on one endpoint. It restricts nothing, so that a rule
// with a mistake here is executed without it.
func (r *rule) session(p *gatewayv1.SessionPersistence) {
	if p == nil {
		return
	}
	no := func(format string, args ...any) {
		r.without = append(r.without, fmt.Sprintf("sessionPersistence.%s; requests go to any endpoint", fmt.Sprintf(format, args...)))
	}
	s := &route.Session{Name: or(p.SessionName, defaultSession)}
	switch kind := or(p.Type, gatewayv1.CookieBasedSessionPersistence); kind {
	case gatewayv1.CookieBasedSessionPersistence:
	case gatewayv1.HeaderBasedSessionPersistence:
		s.Header = true
	default:
		no("type: %q is not supported", kind)
		return
	}
	if p.AbsoluteTimeout != nil {
		d, err := time.ParseDuration(string(*p.AbsoluteTimeout))
		if err != nil || !durationText.MatchString(string(*p.AbsoluteTimeout)) {
			no("absoluteTimeout: %q is no duration", *p.AbsoluteTimeout)
			return
		}
		s.Absolute = d
	}
	if c := p.CookieConfig; c != nil && !s.Header {
		switch kind := or(c.LifetimeType, gatewayv1.SessionCookieLifetimeType); kind {
		case gatewayv1.SessionCookieLifetimeType:
		case gatewayv1.PermanentCookieLifetimeType:
			s.Permanent = true
		default:
			no("cookieConfig.lifetimeType: %q is not supported", kind)
			return
		}
	}
	if err := wire.CheckSession(s); err != nil {
		no("%v", err)
		return
	}
	r.base.Session = s
}

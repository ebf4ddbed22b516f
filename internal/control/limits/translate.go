// Package limits turns RateLimits into what the node proxies of their destinations execute
// (package ratelimit of mesh), decides which node is sent each, and its status.
package limits

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/ambit-mesh/ambit/api/ambit"
	"github.com/ambit-mesh/ambit/internal/mesh/ratelimit"
)

// Made is what became of a RateLimit.
type Made struct {
	limit    *ratelimit.Limit // nil when it has no effect; without hosts and workloads
	services []string         // the names of its targets
	selector map[string]string
	service  string // the name of the rate limit service
	// Invalid is what keeps the object from being used.
	Invalid []string
}

// Modes.
const (
	enforce = "Enforce"
	dryRun  = "DryRun"
)

const (
	maxTargets = 16
	maxRates   = 16
)

// Translate turns an object into a limit.
func Translate(o *ambit.RateLimit) *Made {
	m := &Made{}
	invalid := func(field, format string, args ...any) {
		m.Invalid = append(m.Invalid, field+": "+fmt.Sprintf(format, args...))
	}
	l := &ratelimit.Limit{Namespace: o.Namespace, Name: o.Name, DryRun: o.Spec.Mode == dryRun}
	if mode := o.Spec.Mode; mode != "" && mode != enforce && mode != dryRun {
		invalid("mode", "%q is not one of %s, %s", mode, enforce, dryRun)
	}
	chosen := len(o.Spec.Selector.Labels()) > 0
	switch n := len(o.Spec.TargetRefs); {
	case n > 0 && o.Spec.Selector != nil:
		invalid("selector", "the object has targetRefs as well: write one of both")
	case n == 0 && !chosen:
		invalid("targetRefs", "the object names no Service, and its selector has no label: write one of both")
	case n > maxTargets:
		invalid("targetRefs", "%d are too many: at most %d", n, maxTargets)
	}
	for i, ref := range o.Spec.TargetRefs {
		switch {
		case ref.Group != "" || ref.Kind != "Service":
			invalid(fmt.Sprintf("targetRefs[%d]", i), "%s %q of group %q: only a Service can be limited (use a selector for pods)", ref.Kind, ref.Name, ref.Group)
		case ref.Name == "":
			invalid(fmt.Sprintf("targetRefs[%d].name", i), "it is empty")
		case !slices.Contains(m.services, ref.Name):
			m.services = append(m.services, ref.Name)
		}
	}
	if n := len(o.Spec.Connections); n == 0 && o.Spec.Global == nil || n > maxRates {
		invalid("connections", "there are %d: write 1 to %d, or global", n, maxRates)
	}
	for i := range o.Spec.Connections {
		r, field, err := rate(&o.Spec.Connections[i])
		if err != nil {
			invalid(fmt.Sprintf("connections[%d]%s", i, field), "%v", err)
			continue
		}
		l.Rates = append(l.Rates, r)
	}
	if g := o.Spec.Global; g != nil {
		s, field, err := global(o.Namespace, g)
		if err != nil {
			invalid("global"+field, "%v", err)
		}
		l.Service, m.service = s, g.Service.Name
	}
	if len(m.Invalid) > 0 {
		return m
	}
	if _, err := l.Encode(); err != nil {
		invalid("connections", "%v", err)
		return m
	}
	m.limit, m.selector = l, o.Spec.Selector.Labels()
	return m
}

// rate reads one limit of connections. field is where the mistake is, if it is in one.
func rate(c *ambit.ConnectionLimit) (r ratelimit.Rate, field string, err error) {
	if c.Rate < 1 || c.Rate > ratelimit.MaxCount {
		return r, ".rate", fmt.Errorf("%d is not from 1 to %d", c.Rate, ratelimit.MaxCount)
	}
	r.Count, r.Burst, r.Per = uint32(c.Rate), uint32(c.Rate), time.Second
	if c.Burst != 0 {
		if c.Burst < 1 || c.Burst > ratelimit.MaxCount {
			return r, ".burst", fmt.Errorf("%d is not from 1 to %d", c.Burst, ratelimit.MaxCount)
		}
		r.Burst = uint32(c.Burst)
	}
	if c.Per != "" {
		if r.Per, err = time.ParseDuration(c.Per); err != nil {
			return r, ".per", fmt.Errorf("%q is no time (write 1s, 1m or 1h)", c.Per)
		}
	}
	if c.By != "" {
		if r.By, err = ratelimit.ParseBy(c.By); err != nil {
			return r, ".by", err
		}
	}
	return r, "", r.Check()
}

const defaultTimeout = 100 * time.Millisecond

// global reads a rate limit service, whose host name is not known yet.
func global(namespace string, g *ambit.GlobalLimit) (s *ratelimit.Service, field string, err error) {
	s = &ratelimit.Service{Namespace: namespace, Hostname: g.Service.Name, Domain: g.Domain, Timeout: defaultTimeout, Open: g.FailureMode == "Allow"}
	if g.FailureMode != "" && g.FailureMode != "Allow" && g.FailureMode != "Deny" {
		return nil, ".failureMode", fmt.Errorf("%q is not one of Deny, Allow", g.FailureMode)
	}
	if g.Service.Port < 1 || g.Service.Port > math.MaxUint16 {
		return nil, ".service.port", fmt.Errorf("%d is not a port from 1 to 65535", g.Service.Port)
	}
	s.Port = uint16(g.Service.Port)
	if g.Timeout != "" {
		if s.Timeout, err = time.ParseDuration(g.Timeout); err != nil {
			return nil, ".timeout", fmt.Errorf("%q is no time (write 100ms or 1s)", g.Timeout)
		}
	}
	for i, d := range g.Descriptors {
		var list []ratelimit.Entry
		for _, name := range d.Entries {
			e, err := ratelimit.ParseEntry(name)
			if err != nil {
				return nil, fmt.Sprintf(".descriptors[%d].entries", i), err
			}
			list = append(list, e)
		}
		s.Descriptors = append(s.Descriptors, list)
	}
	return s, "", s.Check()
}

package observe

import (
	"errors"
	"fmt"
	"slices"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
)

// maxLogs bounds the rules of a layer, and the providers of a rule.
const maxLogs = 16

// logRule is one rule of a layer.
type logRule struct {
	providers []logProvider // none: those that are in effect
	disabled  *bool
	filter    Condition // nil leaves what is in effect
}

// logProvider is where lines go, in which format.
type logProvider struct {
	name      string
	format    Format
	collector *Collector // nil: standard output
	labels    Format     // of a collector
}

// logs are the providers in effect. Until a layer names some, there is the gateway's own
// line.
type logs struct {
	list  []logState
	begun bool
}

type logState struct {
	logProvider
	disabled bool
	filter   Condition
}

// merge applies the rules of a layer. A layer that names providers replaces those that
// are in effect; what is said of one of them before stays.
func (s *logs) merge(rules []logRule) {
	if len(rules) == 0 {
		return
	}
	if !s.begun {
		s.list, s.begun = []logState{{}}, true
	}
	var named []logState
	for _, r := range rules {
		for _, p := range r.providers {
			if slices.ContainsFunc(named, func(o logState) bool { return o.name == p.name }) {
				continue
			}
			state := logState{logProvider: p}
			if i := slices.IndexFunc(s.list, func(o logState) bool { return o.name == p.name }); i >= 0 {
				state.disabled, state.filter = s.list[i].disabled, s.list[i].filter
			}
			named = append(named, state)
		}
	}
	if len(named) > 0 {
		s.list = named
	}
	for _, r := range rules {
		for i := range s.list {
			o := &s.list[i]
			if len(r.providers) > 0 && !slices.ContainsFunc(r.providers, func(p logProvider) bool { return p.name == o.name }) {
				continue
			}
			if len(r.providers) > 0 || r.disabled != nil {
				o.disabled = r.disabled != nil && *r.disabled
			}
			if r.filter != nil {
				o.filter = r.filter
			}
		}
	}
}

// own are the lines without any setting.
var own = []Log{{}}

func (s *logs) lines() []Log {
	if !s.begun {
		return own
	}
	var out []Log
	for _, o := range s.list {
		if !o.disabled {
			out = append(out, Log{Format: o.format, Collector: o.collector, Labels: o.labels, Filter: o.filter})
		}
	}
	return out
}

// log compiles a rule.
func (c *compiler) log(p *telemetrypb.AccessLogging) (r logRule, err error) {
	r.disabled = p.Disabled
	if len(p.GetProviders()) > maxLogs {
		return r, fmt.Errorf("providers: there are %d (at most %d are possible)", len(p.GetProviders()), maxLogs)
	}
	for _, l := range p.GetProviders() {
		one, err := c.logProvider(l)
		if err != nil {
			return r, fmt.Errorf("provider %q: %w", l.GetName(), err)
		}
		r.providers = append(r.providers, one)
	}
	if p.GetFilter() != "" {
		if r.filter, err = c.language.Condition(p.GetFilter(), p.GetChecked()); err != nil {
			return r, fmt.Errorf("filter.expression: %w", err)
		}
	}
	return r, nil
}

func (c *compiler) logProvider(l *telemetrypb.LogProvider) (p logProvider, err error) {
	p.name = l.GetName()
	if p.name == "" {
		return p, errors.New("it has no name")
	}
	if l.GetCollector() != nil {
		if p.collector, err = c.collector(l.GetCollector()); err != nil {
			return p, err
		}
		if len(l.GetLabels()) > 0 {
			if p.labels, err = c.language.JSON(l.GetLabels(), l.GetOmitEmpty()); err != nil {
				return p, err
			}
		}
	}
	if l.GetJson() {
		p.format, err = c.language.JSON(l.GetLabels(), l.GetOmitEmpty())
	} else {
		p.format, err = c.language.Text(l.GetText())
	}
	return p, err
}

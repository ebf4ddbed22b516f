package limits

import (
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/api/ambit"
	"github.com/ambit-mesh/ambit/internal/mesh/ratelimit"
)

func object(change func(*ambit.RateLimitSpec)) *ambit.RateLimit {
	o := &ambit.RateLimit{}
	o.Namespace, o.Name = "shop", "web"
	o.Spec = ambit.RateLimitSpec{TargetRefs: []ambit.TargetRef{{Kind: "Service", Name: "web"}}, Connections: []ambit.ConnectionLimit{{Rate: 5}}}
	if change != nil {
		change(&o.Spec)
	}
	return o
}

func TestTranslate(t *testing.T) {
	m := Translate(object(nil))
	if m.limit == nil || len(m.limit.Rates) != 1 || m.limit.Rates[0] != (ratelimit.Rate{Count: 5, Per: time.Second, Burst: 5}) || m.limit.DryRun {
		t.Errorf("defaults: %+v", m)
	}
	m = Translate(object(func(s *ambit.RateLimitSpec) {
		s.TargetRefs, s.Selector, s.Mode = nil, &ambit.Selector{MatchLabels: map[string]string{"app": "web"}}, "DryRun"
		s.Connections = []ambit.ConnectionLimit{{Rate: 1, Per: "1m", Burst: 9, By: "SourceAddress"}}
	}))
	if m.limit == nil || m.limit.Rates[0] != (ratelimit.Rate{Count: 1, Per: time.Minute, Burst: 9, By: ratelimit.SourceAddress}) || !m.limit.DryRun || m.selector["app"] != "web" {
		t.Errorf("all: %+v", m)
	}
	for want, change := range map[string]func(*ambit.RateLimitSpec){
		"targetRefs: ": func(s *ambit.RateLimitSpec) { s.TargetRefs = nil },
		"targetRefs: the object names no Service, and its selector has no label": func(s *ambit.RateLimitSpec) { s.TargetRefs, s.Selector = nil, &ambit.Selector{} },
		"selector: ":                 func(s *ambit.RateLimitSpec) { s.Selector = &ambit.Selector{} },
		"targetRefs[0]: ":            func(s *ambit.RateLimitSpec) { s.TargetRefs[0].Kind = "Gateway" },
		"targetRefs[0].name: ":       func(s *ambit.RateLimitSpec) { s.TargetRefs[0].Name = "" },
		"mode: ":                     func(s *ambit.RateLimitSpec) { s.Mode = "Try" },
		"connections: there are 0":   func(s *ambit.RateLimitSpec) { s.Connections = nil },
		"connections[0].rate: 0":     func(s *ambit.RateLimitSpec) { s.Connections[0].Rate = 0 },
		"connections[0].rate: 99999": func(s *ambit.RateLimitSpec) { s.Connections[0].Rate = 99999999 },
		"connections[0].burst: -1":   func(s *ambit.RateLimitSpec) { s.Connections[0].Burst = -1 },
		"connections[0].per: ":       func(s *ambit.RateLimitSpec) { s.Connections[0].Per = "soon" },
		"connections[0]: per: 1ms":   func(s *ambit.RateLimitSpec) { s.Connections[0].Per = "1ms" },
		"connections[0]: per: 2h":    func(s *ambit.RateLimitSpec) { s.Connections[0].Per = "2h" },
		"global.service.port: ":      func(s *ambit.RateLimitSpec) { s.Global = &ambit.GlobalLimit{Domain: "d"} },
		"global.failureMode: ":       func(s *ambit.RateLimitSpec) { s.Global = &ambit.GlobalLimit{FailureMode: "No"} },
		"global.timeout: ": func(s *ambit.RateLimitSpec) {
			s.Global = &ambit.GlobalLimit{Service: ambit.GlobalService{Name: "a", Port: 1}, Timeout: "soon"}
		},
		"global: descriptors: ": func(s *ambit.RateLimitSpec) {
			s.Global = &ambit.GlobalLimit{Service: ambit.GlobalService{Name: "a", Port: 1}, Domain: "d"}
		},
		"global.descriptors[0].entries: ": func(s *ambit.RateLimitSpec) {
			s.Global = &ambit.GlobalLimit{Service: ambit.GlobalService{Name: "a", Port: 1}, Domain: "d", Descriptors: []ambit.Descriptor{{Entries: []string{"Path"}}}}
		},
		"connections[0].by: ": func(s *ambit.RateLimitSpec) { s.Connections[0].By = "Client" },
	} {
		m := Translate(object(change))
		if m.limit != nil || len(m.Invalid) != 1 || !strings.HasPrefix(m.Invalid[0], want) {
			t.Errorf("%s: %+v", want, m.Invalid)
		}
	}
}

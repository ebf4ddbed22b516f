package app

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/ambit-mesh/ambit/api/admin"
	"github.com/ambit-mesh/ambit/internal/l7/authz"
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/xds"
)

// policies keeps the policies that the control plane has sent.
type policies struct {
	set     atomic.Pointer[authz.Set] // nil before the first have come
	changed func()                    // after each change
	counted *telemetry.Verdicts
	asked   *telemetry.Verdicts
	log     *slog.Logger

	mu    sync.Mutex // guards store: it is dumped while it changes
	store *authz.Store
}

func newPolicies(log *slog.Logger) *policies {
	return &policies{store: authz.NewStore(), counted: telemetry.NewVerdicts(), asked: telemetry.NewAuthorizations(), log: log, changed: func() {}}
}

// apply takes a response in.
func (p *policies) apply(d xds.Delta) []xds.Rejection {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []xds.Rejection
	for _, res := range d.Updated {
		if err := p.store.Put(res.Name, res.Body); err != nil {
			p.log.Error("policy rejected: everything is denied until it is replaced", "resource", res.Name, "error", err)
			out = append(out, xds.Rejection{Name: res.Name, Err: err})
		}
	}
	for _, name := range d.Removed {
		p.store.Remove(name)
	}
	p.set.Store(p.store.Set())
	if len(d.Removed) > 0 {
		p.counted.Keep(p.store.Has)
		p.asked.Keep(p.store.Asks)
	}
	p.changed()
	return out
}

// verdict counts and logs what a policy says that decides nothing.
func (p *policies) verdict(n authz.Note) {
	p.counted.Count(n.Policy, n.Verdict.String())
	if p.log.Enabled(context.Background(), slog.LevelDebug) {
		p.log.Debug("verdict of a policy that decides nothing", "policy", n.Policy, "verdict", n.Verdict.String())
	}
}

// answered counts what came of asking an external authorizer.
func (p *policies) answered(authorizer string, o extauthz.Outcome) {
	p.asked.Count(authorizer, o.String())
}

// dump lists the policies for /config_dump.
func (p *policies) dump() []admin.RequestPolicy {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.store.Summaries()
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/template"
)

// alerts evaluates alert rules. The format is checked, and templates are expanded, by
// Prometheus' own packages; its package rules would link its discovery of targets and its
// notifier.
type alerts struct {
	engine *promql.Engine
	db     *memory
	rules  []rulefmt.Rule
	hold   time.Duration // in place of the rules' own; negative for these

	mu     sync.Mutex
	active []active
	failed map[string]string // last error, by alert
	rounds int
}

// active is an alert whose expression gives a series.
type active struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	State       string            `json:"state"`
	ActiveAt    time.Time         `json:"activeAt"`

	key string
}

func loadRules(file string, engine *promql.Engine, p parser.Parser, db *memory, hold time.Duration) (*alerts, error) {
	b, err := os.ReadFile(file) //nolint:gosec // the command line names it
	if err != nil {
		return nil, err
	}
	groups, errs := rulefmt.Parse(b, false, model.UTF8Validation, p, slog.New(slog.NewTextHandler(os.Stderr, nil)))
	if len(errs) > 0 {
		return nil, fmt.Errorf("%s: %w", file, errors.Join(errs...))
	}
	a := &alerts{engine: engine, db: db, hold: hold, failed: map[string]string{}}
	for _, g := range groups.Groups {
		a.rules = append(a.rules, g.Rules...)
	}
	return a, nil
}

func (a *alerts) run(ctx context.Context, interval time.Duration) {
	for tick := time.NewTicker(interval); ; {
		a.round(ctx, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// round evaluates all rules at a time.
func (a *alerts) round(ctx context.Context, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	since := map[string]time.Time{}
	for _, one := range a.active {
		since[one.key] = one.ActiveAt
	}
	a.active = nil
	for _, r := range a.rules {
		v, err := a.query(ctx, r.Expr, now)
		if err != nil {
			a.failed[r.Alert] = err.Error()
			continue
		}
		hold := time.Duration(r.For)
		if a.hold >= 0 {
			hold = a.hold
		}
		for _, s := range v {
			one := a.expand(ctx, r, s, now)
			one.State = "pending"
			if at, ok := since[one.key]; ok {
				one.ActiveAt = at
			}
			if now.Sub(one.ActiveAt) >= hold {
				one.State = "firing"
			}
			a.active = append(a.active, one)
			b := labels.NewBuilder(labels.FromMap(one.Labels))
			b.Set(labels.MetricName, "ALERTS").Set("alertstate", one.State)
			a.db.append(b.Labels(), now.UnixMilli(), 1)
		}
	}
	a.rounds++
}

func (a *alerts) query(ctx context.Context, text string, at time.Time) (promql.Vector, error) {
	q, err := a.engine.NewInstantQuery(ctx, a.db, nil, text, at)
	if err != nil {
		return nil, err
	}
	defer q.Close()
	res := q.Exec(ctx)
	if res.Err != nil {
		return nil, res.Err
	}
	return res.Vector()
}

// expand returns the alert of a series, with its templates expanded.
func (a *alerts) expand(ctx context.Context, r rulefmt.Rule, s promql.Sample, now time.Time) active {
	data := template.AlertTemplateData(s.Metric.Map(), nil, "", s)
	expand := func(text string) string {
		out, err := template.NewTemplateExpander(ctx, "{{$labels := .Labels}}{{$value := .Value}}"+text, r.Alert, data, model.TimeFromUnixNano(now.UnixNano()), a.query, &url.URL{}, nil).Expand()
		if err != nil {
			a.failed[r.Alert] = err.Error()
		}
		return out
	}
	b := labels.NewBuilder(s.Metric)
	b.Del(labels.MetricName).Set(labels.AlertName, r.Alert)
	for name, value := range r.Labels {
		b.Set(name, expand(value))
	}
	l := b.Labels()
	one := active{Labels: l.Map(), Annotations: map[string]string{}, ActiveAt: now, key: l.String()}
	for name, value := range r.Annotations {
		one.Annotations[name] = expand(value)
	}
	return one
}

// serve answers as Prometheus' /api/v1/alerts does, and with the errors of rules.
func (a *alerts) serve(w http.ResponseWriter, _ *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	answer(w, http.StatusOK, map[string]any{"status": "success", "data": map[string]any{"alerts": a.active, "rules": len(a.rules), "rounds": a.rounds, "errors": a.failed}})
}

// names answers with the metrics that a query names.
func names(w http.ResponseWriter, r *http.Request, p parser.Parser) {
	e, err := p.ParseExpr(r.FormValue("query"))
	if err != nil {
		answer(w, http.StatusBadRequest, map[string]string{"status": "error", "errorType": "bad_data", "error": err.Error()})
		return
	}
	found := []string{}
	parser.Inspect(e, func(n parser.Node, _ []parser.Node) error {
		if s, ok := n.(*parser.VectorSelector); ok {
			found = append(found, s.Name)
		}
		return nil
	})
	answer(w, http.StatusOK, map[string]any{"status": "success", "data": found})
}

package selftest

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
)

func metric(t *testing.T, r *prometheus.Registry) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil || len(families) != 1 {
		t.Fatal(families, err)
	}
	return families[0].GetMetric()[0].GetGauge().GetValue()
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var results []Result
		registry := prometheus.NewRegistry()
		attempts := 0
		err := Await(t.Context(), Options{
			Test: func() error {
				if metric(t, registry) != 0 {
					t.Error("the metric says that the node is ready")
				}
				if attempts++; attempts < 5 {
					return errors.New("no nf_tables")
				}
				return nil
			},
			Report: func(r Result) { results = append(results, r) },
			Logger: slog.New(slog.DiscardHandler), Registerer: registry,
		})
		if err != nil {
			t.Error(err)
		}
		if len(results) != 2 || results[0].Ready || results[0].Reason != ReasonFailed || !strings.Contains(results[0].Message, "no nf_tables") ||
			!results[1].Ready || results[1].Reason != ReasonProven {
			t.Errorf("results %+v", results)
		}
		if metric(t, registry) != 1 {
			t.Error("the metric says that the node is not ready")
		}
	})
}

func TestAwaitEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	err := Await(ctx, Options{
		Test: func() error { return errors.New("no") }, Report: func(Result) { cancel() },
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestThisNode(t *testing.T) {
	err := Await(t.Context(), Options{
		Test: func() error { return errors.Join(Redirects(false), Redirects(true)) }, Report: func(r Result) {
			if !r.Ready {
				t.Fatal(r.Message)
			}
		},
		Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Error(err)
	}
}

package main

import (
	"context"
	"slices"
	"sync"

	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"
)

// maxSamples bounds the samples of a series: the oldest are forgotten.
const maxSamples = 3600

// memory is a storage of Prometheus that keeps everything in memory.
type memory struct {
	mu     sync.Mutex
	series map[string]*kept
}

type kept struct {
	labels  labels.Labels
	samples []chunks.Sample
}

func newMemory() *memory { return &memory{series: map[string]*kept{}} }

func (m *memory) append(l labels.Labels, at int64, value float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.series[l.String()]
	if s == nil {
		s = &kept{labels: l}
		m.series[l.String()] = s
	}
	if len(s.samples) >= maxSamples {
		s.samples = slices.Clone(s.samples[len(s.samples)/2:])
	}
	s.samples = append(s.samples, sample{at, value})
}

// Querier implements storage.Queryable.
func (m *memory) Querier(from, to int64) (storage.Querier, error) {
	return &querier{m, from, to}, nil
}

type querier struct {
	of       *memory
	from, to int64
}

// Select implements storage.Querier.
func (q *querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	q.of.mu.Lock()
	defer q.of.mu.Unlock()
	var found []storage.Series
	for _, s := range q.of.series {
		if slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.labels.Get(m.Name)) }) {
			continue
		}
		var in []chunks.Sample
		for _, one := range s.samples {
			if one.T() >= q.from && one.T() <= q.to {
				in = append(in, one)
			}
		}
		if len(in) > 0 {
			found = append(found, storage.NewListSeries(s.labels, in))
		}
	}
	slices.SortFunc(found, func(a, b storage.Series) int { return labels.Compare(a.Labels(), b.Labels()) })
	return &set{found, -1}
}

// LabelValues implements storage.Querier; no query asks for it.
func (q *querier) LabelValues(context.Context, string, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

// LabelNames implements storage.Querier; no query asks for it.
func (q *querier) LabelNames(context.Context, *storage.LabelHints, ...*labels.Matcher) ([]string, annotations.Annotations, error) {
	return nil, nil, nil
}

// Close implements storage.Querier.
func (q *querier) Close() error { return nil }

type set struct {
	all []storage.Series
	at  int
}

// Next implements storage.SeriesSet, as do the others.
func (s *set) Next() bool {
	s.at++
	return s.at < len(s.all)
}
func (s *set) At() storage.Series                { return s.all[s.at] }
func (s *set) Err() error                        { return nil }
func (s *set) Warnings() annotations.Annotations { return nil }

// sample is a value at a time.
type sample struct {
	at    int64
	value float64
}

// T implements chunks.Sample, as do the others.
func (s sample) T() int64                      { return s.at }
func (s sample) ST() int64                     { return 0 }
func (s sample) F() float64                    { return s.value }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }
func (s sample) Copy() chunks.Sample           { return s }

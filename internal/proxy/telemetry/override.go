package telemetry

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
)

// Override changes what is served of one metric of the traffic to one service.
type Override struct {
	Disabled bool
	// Remove are labels that are left out: series that differ in them alone become one.
	Remove []string
	// Set are labels and their values, in place of others of that name.
	Set map[string]string
	// From are labels and the expressions that their values are made of, as Tags have them.
	From map[string]string
}

// Overrides are what users want of metrics.
type Overrides interface {
	// Any reports whether there is an override at all.
	Any() bool
	// For returns the overrides of some traffic, by the names of Istio's enum. It is
	// called for a scrape.
	For(t Traffic) map[string]Override
}

// Traffic is what overrides are looked up by, as the labels have it. Comparable.
type Traffic struct {
	Service  ServiceRef // without its name
	Reporter string
	// Of the workload that the reporter reports for, empty for a waypoint.
	Namespace, Workload string
}

// trafficOf reads the labels of a metric.
func trafficOf(m *dto.Metric) Traffic {
	t := Traffic{
		Service:  ServiceRef{Namespace: label(m, "destination_service_namespace"), Hostname: label(m, "destination_service")},
		Reporter: label(m, "reporter"),
	}
	switch t.Reporter {
	case Source.String():
		t.Namespace, t.Workload = label(m, "source_workload_namespace"), label(m, "source_workload")
	case Destination.String():
		t.Namespace, t.Workload = label(m, "destination_workload_namespace"), label(m, "destination_workload")
	}
	return t
}

// istioNames are Istio's names of the metrics of traffic.
var istioNames = map[*prometheus.Desc]string{
	descRequests: "REQUEST_COUNT", descDuration: "REQUEST_DURATION", descAsked: "REQUEST_SIZE", descAnswered: "RESPONSE_SIZE",
	descMessages: "GRPC_REQUEST_MESSAGES", descResponses: "GRPC_RESPONSE_MESSAGES", descOpened: "TCP_OPENED_CONNECTIONS",
	descClosed: "TCP_CLOSED_CONNECTIONS", descSent: "TCP_SENT_BYTES", descReceived: "TCP_RECEIVED_BYTES",
}

// NewOverridden returns a collector of what a recorder has counted, as users want it.
// Nothing changes for requests: a scrape does the work.
func NewOverridden(r *Recorder, o Overrides) prometheus.Collector { return &overridden{r, o} }

type overridden struct {
	rec *Recorder
	of  Overrides
}

// Describe sends nothing: the series are not known beforehand.
func (o *overridden) Describe(chan<- *prometheus.Desc) {}

// Collect is called for every scrape.
func (o *overridden) Collect(ch chan<- prometheus.Metric) {
	if !o.of.Any() && !o.rec.hasTags() {
		o.rec.Collect(ch)
		return
	}
	all := make(chan prometheus.Metric)
	go func() { defer close(all); o.rec.Collect(all) }()
	known := map[Traffic]map[string]Override{}
	sums := map[string]*written{}
	for m := range all {
		name, traffic := istioNames[m.Desc()]
		if !traffic {
			ch <- m
			continue
		}
		w := &written{desc: m.Desc()}
		if m.Write(&w.metric) != nil {
			continue
		}
		at := trafficOf(&w.metric)
		list, ok := known[at]
		if !ok {
			list = o.of.For(at)
			known[at] = list
		}
		change, is := list[name]
		if is && change.Disabled {
			continue
		}
		if is {
			change.apply(&w.metric, tagsOf(m))
		}
		k := w.key(name)
		if sum := sums[k]; sum != nil {
			sum.add(&w.metric)
		} else {
			sums[k] = w
		}
	}
	for _, w := range sums {
		ch <- w
	}
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.Label {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

func (c *Override) apply(m *dto.Metric, t Tags) {
	m.Label = slices.DeleteFunc(m.Label, func(l *dto.LabelPair) bool {
		_, set := c.Set[l.GetName()]
		_, made := c.From[l.GetName()]
		return set || made || slices.Contains(c.Remove, l.GetName())
	})
	for name, value := range c.Set {
		m.Label = append(m.Label, &dto.LabelPair{Name: proto.String(name), Value: proto.String(value)})
	}
	c.made(m, t)
}

// written is a metric with its value.
type written struct {
	desc   *prometheus.Desc
	metric dto.Metric
}

// Desc implements prometheus.Metric.
func (w *written) Desc() *prometheus.Desc { return w.desc }

// Write implements prometheus.Metric.
func (w *written) Write(out *dto.Metric) error {
	out.Label, out.Counter, out.Histogram = w.metric.Label, w.metric.Counter, w.metric.Histogram
	return nil
}

func (w *written) key(name string) string {
	parts := make([]string, 0, len(w.metric.Label)+1)
	for _, l := range w.metric.Label {
		parts = append(parts, l.GetName()+"\x00"+l.GetValue())
	}
	slices.Sort(parts)
	return name + "\x01" + strings.Join(parts, "\x01")
}

// add adds the value of another series of the same bounds.
func (w *written) add(o *dto.Metric) {
	if c := w.metric.Counter; c != nil {
		w.metric.Counter = &dto.Counter{Value: proto.Float64(c.GetValue() + o.GetCounter().GetValue())}
		return
	}
	a, b := w.metric.Histogram, o.Histogram
	sum := &dto.Histogram{SampleCount: proto.Uint64(a.GetSampleCount() + b.GetSampleCount()), SampleSum: proto.Float64(a.GetSampleSum() + b.GetSampleSum())}
	for i, one := range a.Bucket {
		sum.Bucket = append(sum.Bucket, &dto.Bucket{UpperBound: one.UpperBound, CumulativeCount: proto.Uint64(one.GetCumulativeCount() + b.Bucket[i].GetCumulativeCount())})
	}
	w.metric.Histogram = sum
}

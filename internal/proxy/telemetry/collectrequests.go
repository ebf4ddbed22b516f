package telemetry

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

var (
	descRequests  = prometheus.NewDesc("istio_requests_total", "Requests.", requestLabels(), nil)
	descDuration  = prometheus.NewDesc("istio_request_duration_milliseconds", "Time from a request's head to the end of its response.", requestLabels(), nil)
	descAsked     = prometheus.NewDesc("istio_request_bytes", "Bytes of requests, with their heads.", requestLabels(), nil)
	descAnswered  = prometheus.NewDesc("istio_response_bytes", "Bytes of responses, with their heads.", requestLabels(), nil)
	descMessages  = prometheus.NewDesc("istio_request_messages_total", "Messages of gRPC from clients.", requestLabels(), nil)
	descResponses = prometheus.NewDesc("istio_response_messages_total", "Messages of gRPC to clients.", requestLabels(), nil)
	descUncounted = prometheus.NewDesc("waypoint_requests_uncounted_total", "Requests that are in no series because there were too many (unstable).", nil, nil)
)

// Names of the labels that requests have and connections do not.
var (
	nameCode     = "response_code"
	nameStatus   = "grpc_response_status"
	nameProtocol = "request_protocol"
	nameFlags    = "response_flags"
	nameSecurity = "connection_security_policy"
	protoHTTP    = "http"
	protoGRPC    = "grpc"
)

func requestLabels() []string {
	return append(append([]string(nil), labelNames[:numPartyLbl]...), nameProtocol, nameCode, nameStatus, nameFlags, nameSecurity)
}

func (s *series) collectRequests(ch chan<- prometheus.Metric) {
	for _, c := range s.merged() {
		if c.grpc && c.asked+c.responded > 0 {
			ch <- &requestMetric{descMessages, s, c, count(c.asked), nil}
			ch <- &requestMetric{descResponses, s, c, count(c.responded), nil}
		}
		if c.requests == 0 {
			continue
		}
		ch <- &requestMetric{descRequests, s, c, count(c.requests), nil}
		ch <- &requestMetric{descDuration, s, c, nil, &c.duration}
		ch <- &requestMetric{descAsked, s, c, nil, &c.received}
		ch <- &requestMetric{descAnswered, s, c, nil, &c.sent}
	}
}

func count(n uint64) *float64 {
	v := float64(n)
	return &v
}

// requestMetric is one value of a series of requests: a count or a histogram.
type requestMetric struct {
	desc  *prometheus.Desc
	s     *series
	c     *cell
	value *float64
	h     *histogram
}

func (m *requestMetric) Desc() *prometheus.Desc { return m.desc }

// Write fills the message. Names and values are pointed to where they stay.
func (m *requestMetric) Write(out *dto.Metric) error {
	const own = 5
	pairs := make([]dto.LabelPair, numPartyLbl+own)
	out.Label = make([]*dto.LabelPair, 0, len(pairs))
	add := func(name, value *string) {
		if *value == "" {
			return // without a value a label is none
		}
		i := len(out.Label)
		pairs[i].Name, pairs[i].Value = name, value
		out.Label = append(out.Label, &pairs[i])
	}
	for i := range numPartyLbl {
		add(&labelNames[i], &m.s.labels.party[i])
	}
	proto, code, status := &protoHTTP, m.c.codeName(), m.c.statusName()
	if m.c.grpc {
		proto = &protoGRPC
	}
	add(&nameProtocol, proto)
	add(&nameCode, &code)
	add(&nameStatus, &status)
	add(&nameFlags, &m.s.reporter.flags()[m.c.flag])
	add(&nameSecurity, &securityNames[m.c.mtls])
	if m.h == nil {
		out.Counter = &dto.Counter{Value: m.value}
		return nil
	}
	total := uint64(0)
	buckets := make([]*dto.Bucket, 0, len(bounds))
	for i := range bounds {
		total += m.h.counts[i]
		n := total
		buckets = append(buckets, &dto.Bucket{CumulativeCount: &n, UpperBound: &bounds[i]})
	}
	total += m.h.counts[len(bounds)]
	out.Histogram = &dto.Histogram{SampleCount: &total, SampleSum: &m.h.sum, Bucket: buckets}
	return nil
}

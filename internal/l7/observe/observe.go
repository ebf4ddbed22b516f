// Package observe is what proxies observe of requests and connections: the layers that the
// control plane sends, and the settings that they come to for a service or a workload. What
// conditions, values and formats are is the Language of a role, in a package of its own.
package observe

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	telemetrypb "github.com/ambit-mesh/ambit/api/telemetry"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/trace"
)

// Service names a service, as Address resources do.
type Service struct{ Namespace, Hostname string }

// Settings are what is observed of the requests to one service. They are immutable.
type Settings struct {
	// Tracing is nil when there are neither spans nor headers.
	Tracing *Tracing
	// Logs are the lines that a request has.
	Logs []Log
	// Metrics are what is changed of metrics, by the names of Istio's enum.
	Metrics map[string]*Metric
	// Values are evaluated for each request: labels of metrics are made of them.
	Values []Value
}

// Log is a line of the access log.
type Log struct {
	// Format is that of the line; nil is the gateway's own.
	Format Format
	// Collector receives the line as a log record; nil is standard output.
	Collector *Collector
	// Labels are attributes of the record; nil without any.
	Labels Format
	// Filter selects the requests that have the line; nil is all.
	Filter Condition
}

// Tracing selects the requests that get spans.
type Tracing struct {
	// Collector is where spans go; nil: nowhere.
	Collector *Collector
	// Share is that of the requests that are sampled, of those about which nothing is
	// decided.
	Share trace.Share
	// Propagate has the next program get the context.
	Propagate bool
	// IstioTags has spans carry attributes with Istio's names too.
	IstioTags bool
	Tags      []Tag
}

// Tag is an attribute of each span: a value, or a header of the request and the value
// when it is not there.
type Tag struct {
	Name   string
	Value  string
	Header bool
	Key    message.Key // of the header
}

// Collector is a service that receives OTLP. Two that are equal are one.
type Collector struct {
	Provider string
	Service  Service
	Port     uint16
	// Path is that of HTTP with protobuf; "" for gRPC.
	Path    string
	Headers []Header
	Timeout time.Duration
}

// Header is a field of the requests to a collector.
type Header struct {
	Key   message.Key
	Value string
}

// name returns a text that no other collector has.
func (c *Collector) name() string {
	parts := []string{c.Provider, c.Service.Namespace, c.Service.Hostname, strconv.Itoa(int(c.Port)), c.Path, c.Timeout.String()}
	for _, h := range c.Headers {
		parts = append(parts, h.Key.String(), h.Value)
	}
	return strings.Join(parts, "\x00")
}

// Layer is one resource, compiled.
type Layer struct {
	scope     telemetrypb.Scope
	namespace string
	name      string
	created   int64
	services  []Service
	workloads []string // UIDs
	side      telemetrypb.Side
	tracing   *tracing
	logs      []logRule
	metrics   []*telemetrypb.MetricOverride
	values    map[string]Value // of metrics, by their texts
}

// tracing is of one layer; nil and absent fields leave the values of earlier layers.
type tracing struct {
	collector *Collector
	share     *trace.Share
	silent    *bool // nothing is reported
	closed    *bool // nothing is propagated
	istio     *bool
	tags      []Tag
	hasTags   bool
}

// before orders layers as they are merged: what decides comes last. Of two of the same
// scope, that is the older one.
func before(a, b *Layer) int {
	return cmp.Or(cmp.Compare(a.scope, b.scope), -cmp.Compare(a.created, b.created), -strings.Compare(a.namespace+"/"+a.name, b.namespace+"/"+b.name))
}

// Set is all layers of a gateway at one moment. It is immutable. The nil Set has none.
type Set struct {
	home       string
	everywhere []*Layer            // of the mesh, the root namespace and the class
	namespaces map[string][]*Layer // by namespace
	gateway    []*Layer
	services   map[Service][]*Layer
	workloads  map[string][]*Layer // by UID
	collectors map[Service]bool
	// Metrics: a layer changes metrics.
	Metrics bool
}

// newSet arranges layers for a gateway in a namespace.
func newSet(home string, layers []*Layer) *Set {
	s := &Set{home: home, namespaces: map[string][]*Layer{}, services: map[Service][]*Layer{}, workloads: map[string][]*Layer{}, collectors: map[Service]bool{}}
	slices.SortFunc(layers, before)
	for _, l := range layers {
		s.Metrics = s.Metrics || len(l.metrics) > 0
		if l.tracing != nil && l.tracing.collector != nil {
			s.collectors[l.tracing.collector.Service] = true
		}
		switch l.scope {
		case telemetrypb.Scope_NAMESPACE:
			s.namespaces[l.namespace] = append(s.namespaces[l.namespace], l)
		case telemetrypb.Scope_GATEWAY:
			s.gateway = append(s.gateway, l)
		case telemetrypb.Scope_SERVICE:
			for _, svc := range l.services {
				s.services[svc] = append(s.services[svc], l)
			}
		case telemetrypb.Scope_WORKLOAD:
			for _, uid := range l.workloads {
				s.workloads[uid] = append(s.workloads[uid], l)
			}
		default:
			s.everywhere = append(s.everywhere, l)
		}
	}
	return s
}

// For merges what the layers say of requests to a service, or, with the name of a
// namespace alone, to a workload in it. What decides, first: the service, the gateway,
// the namespace of the service, that of the gateway, and what is for all.
func (s *Set) For(svc Service) *Settings {
	m := merger{}
	if s == nil {
		return m.settings()
	}
	m.merge(s.everywhere)
	m.merge(s.namespaces[s.home])
	if svc.Namespace != s.home {
		m.merge(s.namespaces[svc.Namespace])
	}
	m.merge(s.gateway)
	m.merge(s.services[svc])
	return m.settings()
}

// Side is the half of a connection that settings are for.
type Side uint8

// The sides, of the workload that has begun the connection and of the other one.
const (
	Client Side = Side(telemetrypb.Side_CLIENT)
	Server Side = Side(telemetrypb.Side_SERVER)
)

// ForWorkload merges what the layers say of one half of the connections of a workload, by
// the workload's namespace and UID. What decides, first: the layers that name the
// workload, those of its namespace, and what is for all.
func (s *Set) ForWorkload(namespace, uid string, side Side) *Settings {
	m := merger{side: telemetrypb.Side(side)}
	if s == nil {
		return m.settings()
	}
	m.merge(s.everywhere)
	m.merge(s.namespaces[namespace])
	m.merge(s.workloads[uid])
	return m.settings()
}

// Collects reports whether spans go to a service.
func (s *Set) Collects(svc Service) bool { return s != nil && s.collectors[svc] }

// merger gathers what layers say.
type merger struct {
	side    telemetrypb.Side // of node proxies; BOTH for gateways, which get no other layers
	tracing tracing
	logs    logs
	metrics metrics
}

func (m *merger) merge(layers []*Layer) {
	for _, l := range layers {
		if l.side != telemetrypb.Side_BOTH && l.side != m.side {
			continue
		}
		if t := l.tracing; t != nil {
			m.tracing.merge(t)
		}
		m.logs.merge(l.logs)
		m.metrics.merge(l)
	}
}

func (t *tracing) merge(o *tracing) {
	t.collector = cmp.Or(o.collector, t.collector)
	t.share = cmp.Or(o.share, t.share)
	t.silent = cmp.Or(o.silent, t.silent)
	t.closed = cmp.Or(o.closed, t.closed)
	t.istio = cmp.Or(o.istio, t.istio)
	if o.hasTags {
		t.tags, t.hasTags = o.tags, true
	}
}

func (m *merger) settings() *Settings {
	s := &Settings{Logs: m.logs.lines(), Metrics: m.metrics, Values: m.metrics.values()}
	if t := &m.tracing; t.collector != nil {
		s.Tracing = &Tracing{Collector: t.collector, Propagate: t.closed == nil || !*t.closed, IstioTags: t.istio == nil || *t.istio, Tags: t.tags}
		if t.share != nil {
			s.Tracing.Share = *t.share
		}
		if t.silent != nil && *t.silent {
			s.Tracing.Collector = nil
		}
	}
	return s
}

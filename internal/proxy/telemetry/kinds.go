package telemetry

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// Kind is what has decided about a connection at a port that declares no protocol.
type Kind uint8

// What has decided.
const (
	KindHTTP   Kind = iota // the client sent a request of HTTP
	KindClient             // the client sent something else first
	KindServer             // the server spoke first
	KindSilent             // neither did for a time, or the client has ended at once

	kinds = iota
)

var kindNames = [kinds]string{"http", "client", "server", "silence"}

// String returns the value of the label.
func (k Kind) String() string { return kindNames[k] }

var descKinds = prometheus.NewDesc("ambit_undeclared_connections_total", "Connections at ports that declare no protocol, by what has decided that they carry HTTP or not (unstable).", []string{"decided_by"}, nil)

// Kinds counts connections at ports that declare no protocol. The zero value has counted
// none. All methods may be called from any goroutine.
type Kinds struct{ counts [kinds]atomic.Uint64 }

// Count counts one connection.
func (k *Kinds) Count(kind Kind) { k.counts[kind].Add(1) }

// Describe implements prometheus.Collector.
func (k *Kinds) Describe(ch chan<- *prometheus.Desc) { ch <- descKinds }

// Collect implements prometheus.Collector.
func (k *Kinds) Collect(ch chan<- prometheus.Metric) {
	for i := range k.counts {
		ch <- prometheus.MustNewConstMetric(descKinds, prometheus.CounterValue, float64(k.counts[i].Load()), kindNames[i])
	}
}

// Package export sends spans and lines to collectors, on the loop that made them and by
// its own connections. What it holds is bounded. A collector that is slow, or away,
// costs what it would have received and nothing else.
package export

import (
	"cmp"
	"log/slog"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/unary"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/observe"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/otlp"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
)

const (
	// maxQueue bounds the bytes that wait for one collector on one loop.
	maxQueue = 1 << 20
	// maxBatch bounds the bytes of messages in one request, but for a message that is
	// larger alone.
	maxBatch = 128 << 10
	// maxDelay is how long a message waits for others.
	maxDelay = time.Second
	// defaultTimeout bounds a request, OTLP's default.
	defaultTimeout = 10 * time.Second
	// maxTries is how often a batch is sent, the pauses growing from minPause.
	maxTries = 4
	minPause = time.Second
	// maxSenders bounds the collectors of a loop.
	maxSenders = 64
)

// Config is what exporters are made of.
type Config struct {
	Loop *poll.Loop
	Pool *pool.Pool
	// Reach chooses an endpoint of a collector. An owner that has to wait first reports
	// so, and calls resume; it must not when resume is nil.
	Reach func(c *observe.Collector, resume func()) (t pool.Target, wait bool, err *reason.Error)
	// Prefix names the process that sends. It is called for each request.
	Prefix   func() *otlp.Prefix
	Counters *otlp.Counters
	Log      *slog.Logger
	// Path of gRPC's method.
	Method string
	// Agent is the program that sends; "" is ambit-waypoint.
	Agent string
}

// MethodTraces is gRPC's method of spans.
const MethodTraces = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

// MethodLogs is gRPC's method of log records.
const MethodLogs = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"

// Exporter sends the messages of one loop. It belongs to that loop.
type Exporter struct {
	cfg     Config
	senders map[*observe.Collector]*sender
	scratch []byte
}

// New returns an Exporter.
func New(cfg Config) *Exporter {
	return &Exporter{cfg: cfg, senders: map[*observe.Collector]*sender{}}
}

// Admits reports whether a message of about n bytes of a party would be kept. One that
// would not is counted as dropped.
func (e *Exporter) Admits(c *observe.Collector, party string, n int) bool {
	s := e.sender(c)
	if s == nil || !s.queue.Admits(party, n) {
		e.cfg.Counters.Full(1)
		return false
	}
	return true
}

// Add takes a message of a party, which shares the room with others.
func (e *Exporter) Add(c *observe.Collector, party string, body []byte) {
	s := e.sender(c)
	if s == nil {
		e.cfg.Counters.Full(1)
		return
	}
	e.scratch = otlp.Message(e.scratch[:0], body)
	s.add(party, e.scratch)
}

// sender returns that of a collector, nil when there are too many.
func (e *Exporter) sender(c *observe.Collector) *sender {
	if s := e.senders[c]; s != nil {
		return s
	}
	if len(e.senders) >= maxSenders {
		for c, s := range e.senders {
			if s.idle() {
				delete(e.senders, c)
			}
		}
	}
	if len(e.senders) >= maxSenders {
		return nil
	}
	s := newSender(e, c)
	e.senders[c] = s
	return s
}

// Flush sends what waits, now, and reports whether there is nothing left. The nil
// Exporter has nothing.
func (e *Exporter) Flush() (idle bool) {
	if idle = true; e == nil {
		return idle
	}
	for _, s := range e.senders {
		s.flush()
		idle = idle && s.idle()
	}
	return idle
}

// Close gives up what is left.
func (e *Exporter) Close() {
	if e == nil {
		return
	}
	for _, s := range e.senders {
		s.close()
	}
}

var keyContentType = message.NewKey("content-type")

// head makes the head of requests to a collector.
func head(h *message.Head, c *observe.Collector, cfg *Config, timeout time.Duration) {
	path := cmp.Or(c.Path, cfg.Method)
	unary.Post(h, c.Service.Hostname, c.Port, path, cmp.Or(cfg.Agent, "ambit-waypoint"))
	if c.Path == "" {
		unary.GRPC(h, timeout)
	} else {
		h.Add(keyContentType, []byte("application/x-protobuf"))
	}
	for i := range c.Headers {
		h.Add(c.Headers[i].Key, []byte(c.Headers[i].Value))
	}
}

package telemetry

import (
	"strconv"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
	"github.com/ambit-mesh/ambit/internal/proxy/connect"
)

const (
	// maxOutcomes bounds the outcomes that one series tells apart: status codes are
	// what programs answer. Those beyond have the code "unknown".
	maxOutcomes = 64
	// maxCells bounds the outcomes of a process, in all its series and on all its
	// loops. One costs about 700 bytes. Requests beyond it are counted as uncounted.
	maxCells = 1 << 16
)

// bounds are the upper bounds of Istio's histograms, of milliseconds and of bytes alike.
var bounds = [...]float64{
	0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000,
}

// histogram counts values by bounds. The last count is of those above all.
type histogram struct {
	counts [len(bounds) + 1]uint64
	sum    float64
}

func (h *histogram) observe(v float64) {
	i := 0
	for i < len(bounds) && v > bounds[i] {
		i++
	}
	h.counts[i]++
	h.sum += v
}

func (h *histogram) add(o *histogram) {
	for i := range h.counts {
		h.counts[i] += o.counts[i]
	}
	h.sum += o.sum
}

// outcome has the values of the labels that tell requests of one series apart.
type outcome struct {
	grpc   bool
	mtls   security
	flag   uint8
	code   uint16 // unknownCode: beyond maxOutcomes
	status int16  // of gRPC, -1 without one
}

const unknownCode = 1<<16 - 1

// security is the value of connection_security_policy.
type security uint8

const (
	securityUnknown security = iota
	securityMTLS
	securityNone
)

var securityNames = [...]string{securityUnknown: "unknown", securityMTLS: "mutual_tls", securityNone: "none"}

// cell counts the requests of one outcome.
type cell struct {
	outcome
	requests         uint64
	duration         histogram // milliseconds
	sent, received   histogram // bytes to and from the client
	asked, responded uint64    // messages of gRPC
}

func (c *cell) add(o *cell) {
	c.requests += o.requests
	c.duration.add(&o.duration)
	c.sent.add(&o.sent)
	c.received.add(&o.received)
	c.asked += o.asked
	c.responded += o.responded
}

// cells are what one loop has counted of one series. A scrape is the only other that
// takes the lock.
type cells struct {
	mu   sync.Mutex // guards what follows
	all  []*cell
	most int  // outcomes that are kept apart
	gone bool // with its series
}

// Client is the source of requests: what is the same of all requests of one connection.
// It belongs to a loop, and keeps the series that it has used last.
type Client struct {
	Loop     int // its number
	Src      *workload.Workload
	Identity identity.Identity
	Baggage  connect.Baggage

	few  [2]use
	many map[Upstream]*use // beside few; nil until it is needed
}

// maxUsed bounds the series that a client keeps, maxUsedTagged those of a client whose
// requests have tags, which it chooses. It begins anew beyond that.
const (
	maxUsed       = 1024
	maxUsedTagged = 16
)

// use is a series that a client has used.
type use struct {
	to    Upstream
	pair  *Pair // nil: nothing is counted
	cells *cells
}

// Upstream is where a request went. Comparable.
type Upstream struct {
	Workload *workload.Workload // nil: no endpoint was reached
	Service  *workload.Service  // may be nil
	MTLS     bool               // the endpoint has proven its identity
	Tags     Tags               // values of the request
}

// Request is what is counted of one request.
type Request struct {
	GRPC             bool
	Status           int // 0: the client went before it got one
	GRPCStatus       int // -1 without one
	Reason           reason.Reason
	Duration         time.Duration
	Received, Sent   int64 // bytes, with heads
	Asked, Responded uint64
	Partial          bool // the request has not ended: its messages alone are counted
}

// Request counts one request. current returns the workload that has taken the place of
// another in the directory, or that itself; it is called where a series is not known yet.
func (r *Recorder) Request(c *Client, to Upstream, q *Request, current func(*workload.Workload) *workload.Workload) {
	u := r.use(c, to, current)
	if u.pair == nil {
		return
	}
	o := outcome{grpc: q.GRPC, code: uint16(min(max(q.Status, 0), 999)), status: -1, flag: uint8(Waypoint.flagIndex(q.Reason))}
	if q.GRPC && q.GRPCStatus >= 0 {
		o.status = int16(min(q.GRPCStatus, maxGRPCStatus))
	}
	switch {
	case to.Workload == nil:
	case to.MTLS && !c.Identity.IsZero():
		o.mtls = securityMTLS
	default:
		o.mtls = securityNone
	}
	u.cells.mu.Lock()
	defer u.cells.mu.Unlock()
	n := r.cell(u.cells, o)
	if n == nil {
		return
	}
	n.asked += q.Asked
	n.responded += q.Responded
	if q.Partial {
		return
	}
	n.requests++
	n.duration.observe(float64(q.Duration) / float64(time.Millisecond))
	n.received.observe(float64(q.Received))
	n.sent.observe(float64(q.Sent))
}

// maxGRPCStatus is the highest status of gRPC. Others are no statuses: they count as
// one more.
const maxGRPCStatus = 17

// cell returns the cell of an outcome, nil beyond the bound of the process. The caller
// holds the lock of s.
func (r *Recorder) cell(s *cells, o outcome) *cell {
	if s.gone {
		return nil
	}
	for {
		for _, c := range s.all {
			if c.outcome == o {
				return c
			}
		}
		if len(s.all) < s.most || o.code == unknownCode {
			break
		}
		o.code, o.status = unknownCode, -1
	}
	if r.cells.Add(1) > maxCells {
		r.cells.Add(-1)
		r.uncounted.Add(1)
		return nil
	}
	c := &cell{outcome: o}
	s.all = append(s.all, c)
	return c
}

// slot returns where the series of a destination is kept.
func (c *Client) slot(to Upstream) *use {
	for i := range c.few {
		if u := &c.few[i]; u.to == to || u.pair == nil {
			return u
		}
	}
	u := c.many[to]
	if u == nil {
		most := maxUsed
		if to.Tags != "" {
			most = maxUsedTagged
		}
		if c.many == nil || len(c.many) >= most {
			c.many = map[Upstream]*use{}
		}
		u = &use{}
		c.many[to] = u
	}
	return u
}

// use returns the series of a client's requests to a destination.
func (r *Recorder) use(c *Client, to Upstream, current func(*workload.Workload) *workload.Workload) *use {
	u := c.slot(to)
	if u.to == to && u.pair != nil && !u.pair.gone.Load() {
		return u
	}
	k := Key{
		Reporter: Waypoint, MTLS: to.MTLS, Src: current(c.Src), Dst: current(to.Workload), Service: RefTo(to.Service),
		SrcIdentity: c.Identity, Baggage: c.Baggage, Tags: to.Tags,
	}
	*u = use{to: to}
	r.mu.Lock()
	defer r.mu.Unlock()
	if k.Baggage != (connect.Baggage{}) && r.told[k.teller()] >= maxTold && r.pairs[k] == nil {
		k.Baggage = connect.Baggage{} // what this peer says further is not believed
	}
	if r.pairs[k] == nil {
		k.Tags = r.tagged.admit(&k)
	}
	if r.isLive(&k) {
		u.pair = r.intern(k)
		u.cells = u.pair.series.cellsOf(c.Loop)
	}
	return u
}

// cellsOf returns what a loop counts of the series.
func (s *series) cellsOf(loop int) *cells {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.requests) <= loop {
		s.requests = append(s.requests, nil)
	}
	if s.requests[loop] == nil {
		s.requests[loop] = &cells{most: maxOutcomes}
		if s.labels.tags != "" {
			s.requests[loop].most = maxTaggedOutcomes
		}
	}
	return s.requests[loop]
}

// end has nobody count requests of the series any more, and returns how many outcomes
// it had.
func (s *series) end() (n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.requests {
		if l != nil {
			l.mu.Lock()
			n += int64(len(l.all))
			l.gone = true
			l.mu.Unlock()
		}
	}
	return n
}

// merged returns the sums of all loops.
func (s *series) merged() []*cell {
	s.mu.Lock()
	loops := append([]*cells(nil), s.requests...)
	s.mu.Unlock()
	var all []*cell
	at := map[outcome]*cell{}
	for _, l := range loops {
		if l == nil {
			continue
		}
		l.mu.Lock()
		for _, c := range l.all {
			sum := at[c.outcome]
			if sum == nil {
				sum = &cell{outcome: c.outcome}
				at[c.outcome] = sum
				all = append(all, sum)
			}
			sum.add(c)
		}
		l.mu.Unlock()
	}
	return all
}

// codeName renders response_code.
func (o *outcome) codeName() string {
	if o.code == unknownCode {
		return "unknown"
	}
	return strconv.Itoa(int(o.code))
}

// statusName renders grpc_response_status.
func (o *outcome) statusName() string {
	if o.status < 0 {
		return ""
	}
	return strconv.Itoa(int(o.status))
}

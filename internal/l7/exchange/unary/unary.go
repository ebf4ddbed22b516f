// Package unary makes calls that a proxy makes for itself: one request with a whole body, and
// its whole answer, on a connection of a pool. It is used on the loop of the pool alone.
package unary

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Config is one request.
type Config struct {
	Pool   *pool.Pool
	Target pool.Target
	// Head writes the head of the request.
	Head func(*message.Head)
	// Body stays as it is until the end of the call.
	Body []byte
	// MaxAnswer bounds the body of the answer, in bytes: a larger one is an error. With 0
	// the body is read and dropped.
	MaxAnswer int
	// Done gets the answer, or why there is none. It is called at most once: perhaps before
	// Start returns, and never after Stop.
	Done func(Answer, error)
}

// Answer is what came back.
type Answer struct {
	Status int // of HTTP
	GRPC   int // status of gRPC, -1 for none
	Body   []byte
}

// ErrRequest matches the error of a request that cannot be sent, whatever the endpoint.
var ErrRequest = errors.New("the request cannot be sent")

// Call is a call under way.
type Call struct {
	cfg     Config
	head    message.Head
	up      codec.Request
	answer  Answer
	waiting bool // for a connection
	sent    bool
	over    bool
}

// New returns a call that Start begins.
func New(cfg Config) *Call { return &Call{cfg: cfg, answer: Answer{GRPC: -1}} }

// Start sends the request once there is a connection.
func (c *Call) Start() {
	c.waiting = true
	switch up, err := c.cfg.Pool.Get(&c.cfg.Target, c, pool.Limits{}, false); {
	case err != nil:
		c.waiting = false
		c.end(err)
	case up != nil:
		c.OnReady(up)
	}
}

// Stop gives the call up.
func (c *Call) Stop() {
	c.over = true
	if c.waiting {
		c.waiting = false
		c.cfg.Pool.Cancel(&c.cfg.Target, c)
	}
	if up := c.up; up != nil {
		c.up = nil
		up.Abort(reason.RequestTimeout)
	}
}

// end is called with why there is no answer, or nil; the first call counts.
func (c *Call) end(err error) {
	if c.over {
		return
	}
	c.Stop()
	a := c.answer
	if err != nil {
		a = Answer{GRPC: -1}
	}
	c.cfg.Done(a, err)
}

// OnReady implements pool.Waiter.
func (c *Call) OnReady(up codec.Request) {
	c.waiting = false
	c.head.Reset()
	c.cfg.Head(&c.head)
	if err := up.Send(&c.head, int64(len(c.cfg.Body)), c); err != nil {
		up.Abort(reason.Internal)
		c.end(fmt.Errorf("%w: %w", ErrRequest, err))
		return
	}
	c.up = up
	up.Data(c.cfg.Body) // it takes all, and holds what does not fit yet
	if c.up != nil {
		c.sent = true
		up.Finish(nil)
	}
}

// OnFail implements pool.Waiter.
func (c *Call) OnFail(err *reason.Error) {
	c.waiting = false
	c.end(err)
}

// OnHead implements codec.Receiver.
func (c *Call) OnHead(h *message.Head, _ http1.Body) {
	if h.Status >= 200 {
		c.answer.Status = h.Status
		c.grpcStatus(h)
	}
}

func (c *Call) grpcStatus(h *message.Head) {
	if i := h.Find(keyGRPCStatus, 0); i >= 0 {
		if n, err := strconv.Atoi(string(h.Fields[i].Value)); err == nil {
			c.answer.GRPC = n
		}
	}
}

// OnData implements codec.Receiver.
func (c *Call) OnData(p []byte) {
	if c.up == nil {
		return
	}
	if c.cfg.MaxAnswer > 0 {
		if len(c.answer.Body)+len(p) > c.cfg.MaxAnswer {
			c.end(fmt.Errorf("the answer has more than %d bytes", c.cfg.MaxAnswer))
			return
		}
		c.answer.Body = append(c.answer.Body, p...)
	}
	c.up.Consumed(len(p))
}

// OnTrailers implements codec.Receiver.
func (c *Call) OnTrailers(h *message.Head) { c.grpcStatus(h) }

// OnEnd implements codec.Receiver.
func (c *Call) OnEnd() {
	if c.sent {
		c.up = nil // the connection is the pool's
	}
	c.end(nil)
}

// OnWritable implements codec.Receiver.
func (c *Call) OnWritable() {}

// OnAbort implements codec.Receiver.
func (c *Call) OnAbort(cut codec.Cut) {
	c.up = nil
	c.end(errors.New(cut.Reason.Info().What))
}

var (
	keyContentType = message.NewKey("content-type")
	keyTE          = message.NewKey("te")
	keyUserAgent   = message.NewKey("user-agent")
	keyTimeout     = message.NewKey("grpc-timeout")
	keyGRPCStatus  = message.NewKey("grpc-status")
)

// Post writes the head of a request to a path of a service. agent is the program that sends.
func Post(h *message.Head, hostname string, port uint16, path, agent string) {
	h.Method, h.Scheme = []byte("POST"), []byte("http")
	h.SetAuthority([]byte(hostname + ":" + strconv.Itoa(int(port))))
	h.SetPath([]byte(path))
	h.Add(keyUserAgent, []byte(agent))
}

// GRPC adds what makes the request one of gRPC, whose client waits for timeout.
func GRPC(h *message.Head, timeout time.Duration) {
	h.Add(keyContentType, []byte("application/grpc"))
	h.Add(keyTE, []byte("trailers"))
	h.Add(keyTimeout, append(strconv.AppendInt(nil, timeout.Milliseconds(), 10), 'm'))
}

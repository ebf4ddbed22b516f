package exchange

import (
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/codec"
	"github.com/ambit-mesh/ambit/internal/l7/filter"
	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/upstream"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// responseSide is an Exchange as the receiver of its response.
type responseSide Exchange

// OnHead implements codec.Receiver.
func (r *responseSide) OnHead(h *message.Head, body http1.Body) {
	x := (*Exchange)(r)
	x.moved()
	h.RemoveHopByHop()
	if h.Status < 200 && h.Status != 101 {
		x.down.Inform(h)
		return
	}
	x.owner.Outcome(x, reason.OK)
	if x.retryResponse(h) {
		return
	}
	x.tryEndsWithHead()
	x.FirstByte = max(x.engine.loop.Now().Sub(x.Start), 1)
	x.Status, x.Answered = h.Status, true
	x.grpcStatus(h)
	x.Response = h
	filter.Response(&x.Call)
	x.Response = nil
	if x.Rule != nil && x.Rule.Rule.Session != nil {
		x.owner.Hold(x, h)
	}
	length := body.Length
	if length == 0 && (x.head || h.Status == 304) {
		length = statedLength(h)
	}
	if !x.down.Respond(h, length) {
		x.fail(reason.UpstreamProtocol, errHead)
		return
	}
	x.responded = true
	x.Heads.Response = h.Size()
	if length == codec.Raw {
		x.raw = true
		x.sendReplay()
		return
	}
	x.trim(0)
}

// errHead says that a response has a head that cannot be sent on.
var errHead = message.NewFault(502, "head of the response cannot be sent to the client")

// statedLength returns the length that a response without a body would have had.
func statedLength(h *message.Head) int64 {
	v := h.Get(message.ContentLength)
	if v == nil {
		return codec.Chunked
	}
	n, err := strconv.ParseInt(string(v), 10, 64)
	if err != nil || n < 0 {
		return codec.Chunked
	}
	return n
}

// grpcStatus notes the status of gRPC in a head or trailers.
func (x *Exchange) grpcStatus(h *message.Head) {
	if v := h.Get(message.GRPCStatus); v != nil {
		if n, err := strconv.Atoi(string(v)); err == nil {
			x.GRPCStatus = n
		}
	}
}

// OnData implements codec.Receiver.
func (r *responseSide) OnData(p []byte) {
	x := (*Exchange)(r)
	x.Sent += int64(len(p))
	if x.GRPC {
		x.Messages.Response += x.answering.count(p)
		x.progress()
	}
	x.moved()
	ok := x.down.Data(p)
	switch {
	case x.done || x.up == nil:
	case ok && x.owedUp == 0:
		x.up.Consumed(len(p))
	default:
		x.owedUp += len(p)
	}
}

// OnTrailers implements codec.Receiver.
func (r *responseSide) OnTrailers(h *message.Head) {
	x := (*Exchange)(r)
	x.grpcStatus(h)
	x.down.Finish(h)
}

// OnEnd implements codec.Receiver.
func (r *responseSide) OnEnd() {
	x := (*Exchange)(r)
	x.payUp() // the connection goes on to other requests
	x.down.Finish(nil)
	if x.done {
		return
	}
	if x.raw {
		x.rawDone = true
		if x.asked {
			x.up = nil
			x.finish()
		}
		return
	}
	if up := x.up; up != nil && (x.asked || x.switching) {
		x.up = nil // both messages are complete: the connection is the pool's
		up.Release()
	}
	x.finish()
}

// OnWritable implements codec.Receiver: the endpoint has room.
func (r *responseSide) OnWritable() {
	x := (*Exchange)(r)
	x.taken()
	x.payDown()
}

// OnAbort implements codec.Receiver: the endpoint is gone, or sent what cannot be
// read.
func (r *responseSide) OnAbort(c codec.Cut) {
	x := (*Exchange)(r)
	if x.done {
		return
	}
	x.up = nil
	var err error
	if c.Err != nil {
		err = c.Err
	}
	if x.responded {
		x.fail(c.Reason, err)
		return
	}
	x.Reason, x.Err = c.Reason, err
	x.owner.Outcome(x, c.Reason)
	switch {
	case x.keep && x.free < maxFreeTries && (c.Unprocessed || c.Stale && safe(x.request.Method)):
		x.free++
		x.Tries--
		x.again(0)
	case x.keep && x.Tries <= x.retries() && (c.Unprocessed || c.Lost && safe(x.request.Method)):
		x.failedEndpoint()
		x.again(x.pause())
	default:
		x.fail(c.Reason, err)
	}
}

// OnFail implements pool.Waiter: there is no connection to the endpoint.
func (x *Exchange) OnFail(err *reason.Error) {
	x.waiting = false
	x.Reason, x.Err = err.Reason, err
	x.owner.Outcome(x, err.Reason)
	if x.keep && x.Tries <= x.retries() && connectFailure(err.Reason) {
		x.failedEndpoint()
		x.again(x.pause())
		return
	}
	x.fail(err.Reason, err)
}

// maxFreeTries is how often a request is sent again because a connection was closed
// before the endpoint got it, or because the endpoint refused it unprocessed.
const maxFreeTries = 2

// safe reports whether a method may be sent twice though the first request may have
// been processed (RFC 9110, 9.2.1).
func safe(method []byte) bool {
	switch string(method) {
	case "GET", "HEAD", "OPTIONS", "TRACE":
		return true
	}
	return false
}

// connectFailure reports whether a reason says that the endpoint did not get the
// request.
func connectFailure(r reason.Reason) bool {
	switch r {
	case reason.ConnectFailure, reason.ConnectTimeout, reason.TunnelHandshake, reason.TunnelRefused, reason.TunnelClosed,
		reason.TLSFailure, reason.PeerIdentityMismatch, reason.UpstreamReset, reason.WorkloadRemoved:
		return true
	default:
		return false
	}
}

// Of the default policy: those of Istio's routes.
const (
	defaultRetries = 2
	defaultBackoff = 25 * time.Millisecond
	// backoffFactor bounds the pause, in times of its base.
	backoffFactor = 10
	// maxRetries bounds what a route may ask for.
	maxRetries = 100
)

// retries returns how often a request may be sent again.
func (x *Exchange) retries() int {
	if x.Rule == nil {
		return defaultRetries
	}
	return Retries(x.Rule.Rule)
}

// Retries returns how often a request of a rule may be sent again.
func Retries(r *route.Rule) int {
	if r.Retry == nil {
		return defaultRetries
	}
	return min(r.Retry.Attempts, maxRetries)
}

// mayRetry reports whether another try is possible at all. Free ones always are.
func (x *Exchange) mayRetry() bool { return !x.switching || x.Tries <= x.retries() }

func (x *Exchange) pause() time.Duration {
	base := defaultBackoff
	if x.Rule != nil && x.Rule.Rule.Retry != nil && x.Rule.Rule.Retry.Backoff > 0 {
		base = x.Rule.Rule.Retry.Backoff
	}
	return upstream.Backoff(0, base, backoffFactor*base, x.Tries, x.Random())
}

// failedEndpoint has the next try go elsewhere, if it can.
func (x *Exchange) failedEndpoint() {
	if x.nfailed < maxFailed && !x.Failed(x.Target.UID) {
		x.failed[x.nfailed] = x.Target.UID
		x.nfailed++
	}
}

// again sends the request once more, after a pause.
func (x *Exchange) again(pause time.Duration) {
	x.tryEnd.Stop()
	if pause == 0 {
		x.try()
		return
	}
	x.tryEnd.Arm(x.engine.loop, pause, x.onPause)
}

// retryResponse reports whether a response is dropped and the request sent again.
func (x *Exchange) retryResponse(h *message.Head) bool {
	if !x.keep || x.switching || x.Tries > x.retries() || !x.retriable(h) {
		return false
	}
	x.failedEndpoint()
	up := x.up
	x.up = nil
	up.Abort(reason.OK)
	up.Release()
	x.again(x.pause())
	return true
}

// gRPC statuses that say that nothing was processed, or that it may be repeated.
const (
	grpcCancelled   = 1
	grpcUnavailable = 14
)

// loopStatus is what a waypoint answers that ends a circle.
var loopStatus = reason.WaypointLoop.HTTP().Status

// retriable reports whether a response may be dropped for another try.
func (x *Exchange) retriable(h *message.Head) bool {
	if x.Target.Client.Hops != "" && (h.Status == loopStatus || x.Rule == nil || x.Rule.Rule.Retry == nil) {
		return false // the other waypoint has tried already; in a circle, tries would multiply
	}
	if x.GRPC {
		if v := h.Get(message.GRPCStatus); v != nil {
			n, err := strconv.Atoi(string(v))
			return err == nil && (n == grpcCancelled || n == grpcUnavailable)
		}
	}
	if x.Rule == nil || x.Rule.Rule.Retry == nil {
		return false
	}
	for _, c := range x.Rule.Rule.Retry.Codes {
		if c == h.Status {
			return true
		}
	}
	return false
}

// tryTime is the end of the time of one try.
func (x *Exchange) tryTime() {
	if x.responded {
		x.fail(reason.TryTimeout, nil)
		return
	}
	x.Reason, x.Err = reason.TryTimeout, nil
	x.cancel(reason.TryTimeout)
	if x.keep && x.Rule.Rule.Retry != nil && x.Tries <= x.retries() {
		x.failedEndpoint()
		x.again(x.pause())
		return
	}
	x.fail(reason.TryTimeout, nil)
}

// tryEndsWithHead forgets why earlier tries failed: this one has a response. Its
// time goes on until the response is complete.
func (x *Exchange) tryEndsWithHead() { x.Reason, x.Err = reason.OK, nil }

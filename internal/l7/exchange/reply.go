package exchange

import (
	"strconv"

	"github.com/ambit-mesh/ambit/internal/l7/filter"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

var (
	keyContentType  = message.NewKey("content-type")
	keyGRPCStatus   = message.NewKey("grpc-status")
	keyGRPCMessage  = message.NewKey("grpc-message")
	keyAuthenticate = message.NewKey("www-authenticate")
	keyOverloaded   = message.NewKey("x-envoy-overloaded")
)

var (
	textPlain = []byte("text/plain")
	typeGRPC  = []byte("application/grpc")
)

// grpcStatusOf is the status of gRPC for one of HTTP (gRPC's
// doc/http-grpc-status-mapping.md).
func grpcStatusOf(status int) int {
	switch status {
	case 400:
		return 13 // INTERNAL
	case 401:
		return 16 // UNAUTHENTICATED
	case 403:
		return 7 // PERMISSION_DENIED
	case 404:
		return 12 // UNIMPLEMENTED
	case 429, 502, 503, 504:
		return 14 // UNAVAILABLE
	}
	return 2 // UNKNOWN
}

// GRPCStatus returns the status of gRPC for a failure that HTTP answers with status.
func GRPCStatus(status int, why reason.Reason) int {
	if why == reason.NoBackend {
		return grpcUnavailable
	}
	return grpcStatusOf(status)
}

// reply answers with a failure: in words, or as a status of gRPC.
func (x *Exchange) reply(status int, why reason.Reason) {
	h := &x.Reply
	h.Reset()
	text := why.Info().What
	switch why { //nolint:exhaustive // all others say what happened
	case reason.NoRoute, reason.AuthorizerFailed:
		text = ""
	case reason.PolicyDenied, reason.NotAllowed, reason.PolicyChanged, reason.PolicyUnavailable, reason.PolicyUnsupported:
		text = "RBAC: access denied" // as upstream; which policy it was is not the client's business
	case reason.InvalidToken, reason.TokenAudience:
		if e, ok := x.Err.(*reason.Error); ok && e.Err != nil { //nolint:errorlint // never wrapped
			text = e.Err.Error()
		}
		h.Add(keyAuthenticate, x.challenge())
	}
	if why == reason.ResourceExhausted {
		h.Add(keyOverloaded, []byte("true"))
	}
	if x.GRPC || x.Rule != nil && x.Rule.Rule.GRPC {
		x.GRPCStatus = GRPCStatus(status, why)
		h.Status = 200
		h.Add(keyContentType, typeGRPC)
		h.Add(keyGRPCStatus, strconv.AppendInt(nil, int64(x.GRPCStatus), 10))
		if text != "" {
			h.Add(keyGRPCMessage, []byte(text))
		}
		x.respond("")
		return
	}
	h.Status = status
	if text != "" {
		h.Add(keyContentType, textPlain)
	}
	x.respond(text)
}

// maxRealm bounds the address in a challenge, in bytes.
const maxRealm = 256

// challenge returns how a client proves who its user is (RFC 6750, 3): with another token
// for the address that it called, without the query, where tokens may be.
func (x *Exchange) challenge() []byte {
	b := append(make([]byte, 0, 2*maxRealm), `Bearer realm="`...)
	start := len(b)
	scheme := "http"
	if x.TLS {
		scheme = "https"
	}
	b = append(append(append(append(b, scheme...), "://"...), x.request.Authority...), x.request.PathOnly()...)
	b = b[:min(len(b), start+maxRealm)]
	for i := start; i < len(b); i++ {
		if b[i] == '"' || b[i] == '\\' { // not in a quoted string
			b[i] = '_'
		}
	}
	return append(b, `", error="invalid_token"`...)
}

// answer sends what a filter answers with.
func (x *Exchange) answer() {
	x.Direct = true
	x.respond("")
}

// respond sends x.Reply, and ends the exchange.
func (x *Exchange) respond(body string) {
	h := &x.Reply
	x.Response = h
	filter.Response(&x.Call)
	x.Response = nil
	x.Status = h.Status
	x.FirstByte = max(x.engine.loop.Now().Sub(x.Start), 1)
	if !x.down.Respond(h, int64(len(body))) {
		x.down.Abort(reason.Internal)
		x.finish()
		return
	}
	x.responded = true
	x.Heads.Response = h.Size()
	if len(body) > 0 && !x.head {
		x.Sent += int64(len(body))
		x.down.Data([]byte(body))
	}
	x.down.Finish(nil)
	x.finish()
}

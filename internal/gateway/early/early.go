// Package early decides about connections whose kind is not known yet: what the first
// bytes of either side mean, which route they lead to, and how many endpoints may be
// connected meanwhile.
package early

import (
	"bytes"
	"time"

	"github.com/ambit-mesh/ambit/internal/gateway/pair"
	"github.com/ambit-mesh/ambit/internal/l7/http1"
	"github.com/ambit-mesh/ambit/internal/l7/opening"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/sniff"
	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/proxy/telemetry"
	"github.com/ambit-mesh/ambit/internal/sys/poll"
	"github.com/ambit-mesh/ambit/internal/transport/stream"
)

// Hesitation is how long a client is silent before an endpoint is connected for it, so
// that a server that speaks first is heard.
const Hesitation = 5 * time.Millisecond

// NewRoom returns the Room of a loop.
func NewRoom() Room { return Room{Total: 1024, Each: 256} }

// Room bounds the connections of one loop: in total, and of one client identity.
type Room struct {
	Total, Each int
	taken       int
	by          map[identity.Identity]int
}

// Enter takes one place, if the client may have it.
func (r *Room) Enter(id identity.Identity) bool {
	if r.taken >= r.Total || r.by[id] >= r.Each {
		return false
	}
	if r.by == nil {
		r.by = map[identity.Identity]int{}
	}
	r.taken++
	r.by[id]++
	return true
}

// Leave gives a place back.
func (r *Room) Leave(id identity.Identity) {
	r.taken--
	if r.by[id]--; r.by[id] <= 0 {
		delete(r.by, id)
	}
}

// Next is what the first bytes of a server mean for a connection whose client is silent.
type Next uint8

// The meanings.
const (
	Wait     Next = iota // more bytes are needed
	Join                 // the server speaks first: it is no HTTP
	GiveBack             // the server speaks HTTP, and the client is to begin
)

// settings is the length of the header of a frame of HTTP/2, and the type of SETTINGS.
const (
	frameHeader = 9
	settings    = 4
)

// Server looks at the first bytes of a server, all that have come. Servers of HTTP/2 may
// send their SETTINGS before the client has sent anything, and those of HTTP/1 give up a
// silent client with a response.
func Server(p []byte, end bool) Next {
	const http = "HTTP/1."
	if n := min(len(p), len(http)); string(p[:n]) == http[:n] && n > 0 {
		return answer(n == len(http), end)
	}
	for i, c := range p[:min(len(p), frameHeader)] {
		// Length of three bytes, type, flags and stream of four bytes.
		if i == 0 && c != 0 || i == 3 && c != settings || i > 3 && c != 0 {
			return Join
		}
	}
	if len(p) == 0 {
		return answer(false, end)
	}
	return answer(len(p) >= frameHeader, end)
}

func answer(http, end bool) Next {
	switch {
	case http:
		return GiveBack
	case end:
		return Join
	}
	return Wait
}

// Patience returns how long more bytes are awaited that decide about a client, of which
// first has come. What has a method and a space is HTTP, most likely, of which a packet was
// lost: that takes a retransmission, of ten times silence.
func Patience(first []byte, silence time.Duration) time.Duration {
	if bytes.IndexByte(first, ' ') > 0 {
		return 10 * silence
	}
	return silence
}

// Decided returns what has decided about a connection that carries no HTTP.
func Decided(client []byte, server bool) telemetry.Kind {
	switch {
	case len(client) > 0:
		return telemetry.KindClient
	case server:
		return telemetry.KindServer
	}
	return telemetry.KindSilent
}

// Watch looks at the first bytes of a client whose connection is carried as one without
// HTTP before these have decided.
type Watch struct{ first []byte }

// Look takes the next bytes. HTTP is refused then, because no policy for HTTP has judged
// it. more is false when the bytes have decided.
func (w *Watch) Look(p []byte) (more bool, why reason.Reason, err error) {
	w.first = append(w.first, p[:min(len(p), http1.MaxStartLine+2-len(w.first))]...)
	switch sniff.Look(w.first) {
	case sniff.HTTP1, sniff.HTTP2:
		return false, reason.MalformedRequest, errLate
	case sniff.Other:
		w.first = nil
		return false, reason.OK, nil
	case sniff.Undecided:
	}
	return true, reason.OK, nil
}

var errLate = reason.Errorf(reason.MalformedRequest, "HTTP on a connection that has begun without (declare the protocol of the port)")

// Choice is where the routes of connections lead.
type Choice struct {
	Wait    bool // more bytes are needed
	Target  *route.Target
	Name    string // in the first message of TLS
	Failure string // why no route fits; "" when one does
}

// Choose finds the route of a connection without HTTP by what its client has sent. silent:
// it has sent nothing for a time, because its server speaks first.
func Choose(routes *route.Connections, client pair.Early, silent bool) (c Choice) {
	o := opening.Silent
	if routes.Named() && !silent {
		if o, c.Wait = opening.Look(client.Bytes, client.End); c.Wait {
			return c
		}
	}
	c.Name = o.Name
	c.Target, c.Failure = o.Find(routes)
	return c
}

// lingerTime is how long an endpoint whose connection is not needed may take to end it.
const lingerTime = 5 * time.Second

// Leave ends a connection to an endpoint that is not needed, of which held bytes have come:
// as one that a client ends, so that it counts as a failure nowhere. gone is called once.
func Leave(up stream.Conn, held int, gone func()) {
	l := &leaving{up: up, gone: gone}
	up.Bind(l)
	up.Consumed(held)
	up.CloseWrite()
	l.time.Arm(up.Loop(), lingerTime, func() {
		up.Abort(reason.OK)
		gone()
	})
}

type leaving struct {
	up   stream.Conn
	time poll.Deadline
	gone func()
}

// OnData implements stream.Sink.
func (l *leaving) OnData(p []byte, _ bool) { l.up.Consumed(len(p)) }

// OnWritable implements stream.Sink.
func (l *leaving) OnWritable() {}

// OnClose implements stream.Sink.
func (l *leaving) OnClose(reason.Reason, error) {
	l.time.Stop()
	l.gone()
}

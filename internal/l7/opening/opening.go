// Package opening finds the route of a connection without HTTP by the first bytes of its
// client. Waypoints and node proxies decide by it alike.
package opening

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/l7/sni"
)

const (
	// Silence is how long a client is silent before its connection takes the route for all
	// that is not TLS: its server speaks first.
	Silence = 100 * time.Millisecond
	// MaxTime bounds the wait for the first message of TLS.
	MaxTime = time.Minute
	// MaxBytes bounds that message.
	MaxBytes = sni.MaxHello
)

// Opening is what the first bytes of a client have shown. The zero value is that of a
// client of which none was read.
type Opening struct {
	Seen   bool
	TLS    bool
	Name   string // in the first message of TLS
	Broken bool   // it begins like TLS, and cannot be read
}

// Silent is the opening of a client that waits for its server.
var Silent = Opening{Seen: true}

// Look looks at the first bytes of a client, all that have come; end: no more will come.
// more is true when they have not decided.
func Look(p []byte, end bool) (o Opening, more bool) {
	if len(p) == 0 {
		return Silent, !end
	}
	name, v := sni.Read(p)
	switch v {
	case sni.Plain:
		return Silent, false
	case sni.Hello:
		return Opening{Seen: true, TLS: true, Name: name}, false
	case sni.More, sni.Broken:
	}
	return Opening{Seen: true, Broken: true}, v == sni.More && !end
}

// Find returns the rule of some routes for a connection, or why there is none.
func (o Opening) Find(routes *route.Connections) (t *route.Target, failure string) {
	switch {
	case o.Broken && routes.Named():
		return nil, "its TLS handshake cannot be read"
	case o.TLS:
		t = routes.Lookup(o.Name)
	default:
		t = routes.Plain()
	}
	if t == nil {
		return nil, o.unmatched()
	}
	return t, ""
}

// unmatched describes a connection that no route fits.
func (o Opening) unmatched() string {
	if !o.TLS {
		return "a connection without TLS, on a port that has routes of TLS alone"
	}
	return o.String()
}

// String describes the connection.
func (o Opening) String() string {
	switch {
	case !o.TLS:
		return "a connection without TLS"
	case o.Name == "":
		return "a connection of TLS whose client names no server"
	}
	return "a connection of TLS to " + o.Name
}

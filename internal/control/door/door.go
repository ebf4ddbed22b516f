// Package door bounds what connections to the control plane hold and cost before
// their callers are authenticated, and how many connections an authenticated caller
// has. A Door wraps the listeners and the TLS of a gRPC server, and is the Gate
// of its auth.Interceptors.
package door

import (
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/internal/control/auth"
)

// Limits bound connections. Zero values are replaced by defaults.
type Limits struct {
	// Waiting bounds the connections that are not authenticated; WaitingPeer
	// those of one network address.
	Waiting, WaitingPeer int
	// PeerBurst is how many connections of one network address go on to TLS at once,
	// and PeerRate how many more in each second. A connection with an authenticated
	// call does not count. The others are held until it is their turn.
	PeerBurst, PeerRate int
	// Linger is how long a connection that was shed while it was held stays open,
	// so that its client does not come back at once.
	Linger time.Duration
	// Grace is how long a connection may be without an authenticated call. A
	// call under review at its end gets the same time once more.
	Grace time.Duration
	// Bytes is how much an unauthenticated connection may send, TLS included.
	Bytes int64
	// Refusals is how many refused calls end an unauthenticated connection.
	Refusals int
	// Reviews is how many calls of an unauthenticated connection may be under
	// review at a time.
	Reviews int
	// Owner bounds the authenticated connections of one pod; Account those of
	// a caller that is bound to no pod and no node.
	Owner, Account int
	// Others bounds the authenticated connections of all that are no node
	// proxies, so that descriptors are left for node proxies.
	Others int
}

// Defaults. 200 node proxies behind one address connect at once without loss: each
// lets the next one on as soon as it is authenticated. All unauthenticated connections,
// with those that linger, have 5,120 descriptors at most, and some KiB for each.
func (l *Limits) setDefaults() {
	set(&l.Waiting, 1024)
	set(&l.WaitingPeer, 256)
	// A connection that comes to nothing costs some 3 ms of processor time, for a
	// handshake and 16 refused calls. So one address gets a twentieth of a processor.
	set(&l.PeerRate, 16)
	set(&l.PeerBurst, 16) // both processors of a small machine are busy for 25 ms
	set(&l.Linger, 5*time.Second)
	set(&l.Grace, 10*time.Second)
	// A handshake with a certificate, the headers with a token, and one window
	// of a stream, which a client sends without waiting for the server.
	set(&l.Bytes, 128<<10)
	set(&l.Refusals, 16)
	set(&l.Reviews, 8) // a node proxy asks for eight certificates at a time
	set(&l.Owner, 32)
	set(&l.Account, 256)
	set(&l.Others, 4096)
}

func set[T int | int64 | time.Duration](value *T, def T) {
	if *value == 0 {
		*value = def
	}
}

// Cause names why a connection or a call was refused; it is the value of a
// metric's label.
type Cause string

// The causes.
const (
	Anonymous    Cause = "no_credentials"    // a call without token and certificate
	NotAdmitted  Cause = "not_authenticated" // a call with credentials that are not valid
	Silent       Cause = "silent"            // no authenticated call within Grace
	Crowd        Cause = "crowd"             // shed for other unauthenticated connections
	TooMuch      Cause = "too_much"          // more bytes or refused calls than are allowed before authentication
	TooLarge     Cause = "message_too_large" // a message larger than its caller may send
	TooMany      Cause = "too_many"          // more connections of one caller than are allowed
	TooManyAsked Cause = "too_many_reviews"  // more calls under review on one connection than are allowed
)

// Causes lists all causes.
var Causes = []Cause{Anonymous, NotAdmitted, Silent, Crowd, TooMuch, TooLarge, TooMany, TooManyAsked}

// Options configure a Door.
type Options struct {
	Limits Limits
	Logger *slog.Logger
	// Refused, when set, counts.
	Refused func(Cause)
	// NodeProxy reports whether a caller is a node proxy; nil is never.
	NodeProxy func(auth.Caller) bool
	// Largest returns the largest message, in bytes, that a caller may send to
	// a method; nil or less than SmallMessage is SmallMessage.
	Largest func(c auth.Caller, method string) int
}

// Door keeps the connections of a server within Limits.
type Door struct {
	opts Options

	mu        sync.Mutex
	waiting   book
	paces     paces
	turns     map[string]*time.Timer // of network addresses with connections that are held
	lingering int
	owners    map[string]int
	others    int
}

// New returns a Door.
func New(opts Options) *Door {
	opts.Limits.setDefaults()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	return &Door{
		opts: opts, waiting: newBook(opts.Limits.Waiting, opts.Limits.WaitingPeer), owners: map[string]int{},
		paces: paces{rate{opts.Limits.PeerBurst, float64(opts.Limits.PeerRate)}, map[string]*pace{}},
		turns: map[string]*time.Timer{},
	}
}

// Waiting counts the connections that are not authenticated.
func (d *Door) Waiting() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting.total
}

func (d *Door) refused(cause Cause) {
	if d.opts.Refused != nil {
		d.opts.Refused(cause)
	}
}

// prefixIPv6 is what one host or one site has: it can use any address in it.
const prefixIPv6 = 64

// peerOf returns the network address that a connection counts for.
func peerOf(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.Network()
	}
	ip := ap.Addr().Unmap().WithZone("")
	if ip.Is4() {
		return ip.String()
	}
	prefix, err := ip.Prefix(prefixIPv6)
	if err != nil {
		return ip.String()
	}
	return prefix.String()
}

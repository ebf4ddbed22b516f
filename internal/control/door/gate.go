package door

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/internal/control/auth"
)

var (
	errReviews = status.Error(codes.ResourceExhausted, "too many calls of this connection are under review")
	errOwner   = status.Error(codes.ResourceExhausted, "too many connections of this caller")
)

var _ auth.Gate = (*Door)(nil)

// Undecided implements auth.Gate.
func (d *Door) Undecided(ctx context.Context) error {
	c := fromContext(ctx)
	if c == nil {
		return nil
	}
	d.mu.Lock()
	full := !c.admitted.Load() && c.reviews >= d.opts.Limits.Reviews
	if !full {
		c.reviews++
	}
	d.mu.Unlock()
	if full {
		d.refused(TooManyAsked)
		return errReviews
	}
	return nil
}

// Decided implements auth.Gate.
func (d *Door) Decided(ctx context.Context) {
	if c := fromContext(ctx); c != nil {
		d.mu.Lock()
		c.reviews = max(0, c.reviews-1)
		d.mu.Unlock()
	}
}

// Admitted implements auth.Gate.
func (d *Door) Admitted(ctx context.Context, caller auth.Caller, method string) error {
	c := fromContext(ctx)
	if c == nil {
		return nil
	}
	if !c.admitted.Load() && !d.own(c, caller) {
		d.refused(TooMany)
		return errOwner
	}
	if d.opts.Largest != nil {
		c.limit.Store(max(c.limit.Load(), int64(d.opts.Largest(caller, method))))
	}
	return nil
}

// Refused implements auth.Gate.
func (d *Door) Refused(ctx context.Context, anonymous bool) {
	cause := NotAdmitted
	if anonymous {
		cause = Anonymous
	}
	d.refused(cause)
	c := fromContext(ctx)
	if c == nil {
		return
	}
	d.mu.Lock()
	c.refusals++
	over := !c.admitted.Load() && c.refusals > d.opts.Limits.Refusals
	d.mu.Unlock()
	if over {
		d.refused(TooMuch)
		_ = c.Close() // the answers before said why
	}
}

// Source implements auth.Gate.
func (d *Door) Source(ctx context.Context) string {
	if c := fromContext(ctx); c != nil {
		return c.peer
	}
	return ""
}

// Owner names the program for which a caller's connections and streams count: its
// pod, or its account on a node, or its account. Clusters may use the same names.
func Owner(c auth.Caller) (owner string, single bool) {
	account := c.Cluster + ":" + c.Account()
	switch {
	case c.PodName != "":
		return account + "/" + c.PodName + "/" + c.PodUID, true
	case c.Node != "":
		return account + "@" + c.Node, true
	}
	return account, false
}

// own makes a connection that of a caller, unless there are too many.
func (d *Door) own(c *Conn, caller auth.Caller) bool {
	owner, single := Owner(caller)
	node := d.opts.NodeProxy != nil && d.opts.NodeProxy(caller)
	most := d.opts.Limits.Account
	if single {
		most = d.opts.Limits.Owner
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.closed || c.admitted.Load() {
		return true
	}
	if d.owners[owner] >= most || !node && d.others >= d.opts.Limits.Others {
		return false
	}
	d.owners[owner]++
	if c.owner, c.other = owner, !node; c.other {
		d.others++
	}
	c.timer.Stop()
	d.waiting.remove(&c.place)
	if c.paid {
		d.paces.rate.giveBack(d.paces.get(c.peer, time.Now()))
		if turn := d.turns[c.peer]; turn != nil {
			turn.Reset(0)
		}
	}
	c.admitted.Store(true)
	return true
}

// disown ends what own began. The Door is locked.
func (d *Door) disown(c *Conn) {
	if c.owner == "" {
		return
	}
	if d.owners[c.owner]--; d.owners[c.owner] <= 0 {
		delete(d.owners, c.owner)
	}
	if c.other {
		d.others--
	}
	c.owner = ""
}

const (
	// handshakeTime bounds TLS and the preface of HTTP/2.
	handshakeTime = 10 * time.Second
	// maxStreams bounds the calls of a connection. A node proxy asks for eight
	// certificates at a time.
	maxStreams = 64
	// maxHeaders bounds the headers of a call, in bytes: a token has 8 KiB at
	// most.
	maxHeaders = 32 << 10
	// streamWindow is what a call may send before its handler reads. It is fixed:
	// a client could otherwise make it grow to 16 MiB a call.
	streamWindow = 64<<10 - 1
	// connWindow is not memory: gRPC gives it back when bytes come.
	connWindow = 1 << 20
)

// GRPCOptions returns the options of a gRPC server behind a Door, whose calls
// the interceptors authenticate.
func GRPCOptions(i auth.Interceptors) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.InTapHandle(i.Tap),
		grpc.ChainUnaryInterceptor(i.Unary),
		grpc.ChainStreamInterceptor(i.Stream),
		grpc.ConnectionTimeout(handshakeTime),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeaders),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
	}
}

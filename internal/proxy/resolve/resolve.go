// Package resolve finds the addresses of endpoints that only have a name. It
// asks the servers of the proxy's own /etc/resolv.conf, and remembers what they
// say for as long as they permit.
package resolve

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	// maxNames bounds the answers that are remembered.
	maxNames = 4096
	// timeout bounds one look-up, however many wait for it.
	timeout = 5 * time.Second
	// An answer is used for as long as its records say, within these; shorter
	// ones would have every connection wait, longer ones keep mistakes.
	minTTL, maxTTL = time.Second, 5 * time.Minute
	// defaultTTL is for answers that say nothing, as those of /etc/hosts.
	defaultTTL = 5 * time.Second
	// failureTTL keeps a name that does not resolve from being asked for by
	// every connection.
	failureTTL = time.Second
)

// Resolver is safe for concurrent use.
type Resolver struct {
	lookup func(ctx context.Context, host string) ([]netip.Addr, time.Duration, error)
	now    func() time.Time

	mu    sync.Mutex // guards names
	names map[string]*answer
}

// answer is what is known of a name. All but until is written before done is
// closed and not again.
type answer struct {
	done  chan struct{}
	until time.Time // guarded by the resolver's mu; zero while it is looked up
	addrs []netip.Addr
	err   error
}

// New makes a Resolver.
func New() *Resolver {
	return newResolver((&net.Dialer{}).DialContext)
}

func newResolver(dial func(ctx context.Context, network, address string) (net.Conn, error)) *Resolver {
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if u, ok := c.(*net.UDPConn); ok {
			if t, _ := ctx.Value(ttlKey{}).(*ttl); t != nil {
				return &observed{u, t}, nil
			}
		}
		return c, err
	}}
	return &Resolver{now: time.Now, names: map[string]*answer{}, lookup: func(ctx context.Context, host string) ([]netip.Addr, time.Duration, error) {
		t := &ttl{}
		addrs, err := r.LookupNetIP(context.WithValue(ctx, ttlKey{}, t), "ip", host)
		for i, a := range addrs {
			addrs[i] = a.Unmap()
		}
		return addrs, t.get(), err
	}}
}

// Cached is the answer for a name that is remembered; false when it has to be
// looked up. It does not block.
func (r *Resolver) Cached(host string) ([]netip.Addr, error, bool) { //nolint:revive // the answer is a pair
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.names[host]
	if a == nil || !r.now().Before(a.until) {
		return nil, nil, false
	}
	return a.addrs, a.err, true
}

// Lookup returns the addresses of a name, those remembered or new ones.
func (r *Resolver) Lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	r.mu.Lock()
	a := r.names[host]
	if a == nil || !a.until.IsZero() && !r.now().Before(a.until) {
		a = &answer{done: make(chan struct{})}
		r.room()
		r.names[host] = a
		go r.fetch(host, a)
	}
	r.mu.Unlock()
	select {
	case <-a.done:
		return a.addrs, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (r *Resolver) fetch(host string, a *answer) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	addrs, life, err := r.lookup(ctx, host)
	switch {
	case err != nil:
		life = failureTTL
	case life < 0:
		life = defaultTTL
	default:
		life = min(max(life, minTTL), maxTTL)
	}
	r.mu.Lock()
	a.addrs, a.err, a.until = addrs, err, r.now().Add(life)
	r.mu.Unlock()
	close(a.done)
}

// room makes place for one more name: what is over goes first, else any. The
// caller holds mu. Who waits for an answer that is dropped still gets it.
func (r *Resolver) room() {
	if len(r.names) < maxNames {
		return
	}
	now := r.now()
	for host, a := range r.names {
		if !a.until.IsZero() && !now.Before(a.until) {
			delete(r.names, host)
		}
	}
	for host := range r.names {
		if len(r.names) < maxNames {
			return
		}
		delete(r.names, host)
	}
}

// ttl is the least of those in the answers to one look-up.
type ttl struct {
	mu    sync.Mutex
	known bool
	least time.Duration
}

type ttlKey struct{}

func (t *ttl) get() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.known {
		return -1
	}
	return t.least
}

// add reads a message. What cannot be read is the look-up's affair.
func (t *ttl) add(message []byte) {
	var p dnsmessage.Parser
	if h, err := p.Start(message); err != nil || h.RCode != dnsmessage.RCodeSuccess || p.SkipAllQuestions() != nil {
		return
	}
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			return
		}
		t.mu.Lock()
		if life := time.Duration(h.TTL) * time.Second; !t.known || life < t.least {
			t.known, t.least = true, life
		}
		t.mu.Unlock()
		if p.SkipAnswer() != nil {
			return
		}
	}
}

// observed is a connection to a server whose answers are looked at: the
// standard library does not tell how long they hold.
type observed struct {
	*net.UDPConn
	ttl *ttl
}

func (o *observed) Read(p []byte) (int, error) {
	n, err := o.UDPConn.Read(p)
	if err == nil {
		o.ttl.add(p[:n])
	}
	return n, err
}

// Order returns addresses in the order in which they are to be tried: those of a family
// first, and in turns with the others. Of each family it begins with any, so that connections
// spread. random returns a number below n.
func Order(addrs []netip.Addr, want4 bool, random func(n uint64) uint64) []netip.Addr {
	var fit, rest []netip.Addr
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() == want4 {
			fit = append(fit, a)
		} else {
			rest = append(rest, a)
		}
	}
	turn(fit, random)
	turn(rest, random)
	out := make([]netip.Addr, 0, len(addrs))
	for i := range max(len(fit), len(rest)) {
		if i < len(fit) {
			out = append(out, fit[i])
		}
		if i < len(rest) {
			out = append(out, rest[i])
		}
	}
	return out
}

// turn rotates a list.
func turn(list []netip.Addr, random func(n uint64) uint64) {
	if n := uint64(len(list)); n > 1 {
		k := random(n)
		copy(list, append(slices.Clone(list[k:]), list[:k]...))
	}
}

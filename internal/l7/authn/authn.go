// Package authn decides which tokens of end users a gateway accepts, and what programs
// behind it get of them: RequestAuthentication, compiled once. Tokens are verified by
// package jwt.
//
// A request without a token passes: whether it needs one is for policies of
// authorization to say. Each token that a request carries where tokens are looked for must be
// accepted, and headers that programs trust to come from tokens come from nowhere else.
package authn

import (
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/jwt"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Service names a service that policies are for, in lower case.
type Service struct{ Namespace, Hostname string }

// Provider is what is accepted of one issuer. It is immutable.
type Provider struct {
	policy  string // namespace/name
	place   int    // in the policy
	source  string // of the keys
	rule    jwt.Rule
	headers []header
	params  []string
	cookies []string
	forward bool
	payload message.Key // of the header of the payload; no name for none
	outputs []output
	refused []*reason.Error // by jwt.Refusal
}

// header is a place of tokens.
type header struct{ name, prefix string }

// output is a header that gets a claim.
type output struct {
	key  message.Key
	path []string
}

// accepted is what is kept of a token for a provider.
type accepted struct {
	claims  *jwt.Claims
	headers []value
}

type value struct {
	key  message.Key
	text []byte
}

// maxTokens bounds the tokens of one request.
const maxTokens = 8

// Verifier is what the connections of one loop share.
type Verifier struct {
	cache *jwt.Cache[*Provider, *accepted]
	set   *Set
}

// NewVerifier returns a Verifier that remembers nothing.
func NewVerifier() *Verifier { return &Verifier{cache: jwt.NewCache[*Provider, *accepted]()} }

// use notes the policies in force. What was remembered for others is forgotten.
func (v *Verifier) use(s *Set) {
	if v.set != s {
		v.set = s
		v.cache.Keep(s.has)
	}
}

// Check decides about the requests of one connection, one after the other. It belongs
// to one goroutine.
type Check struct {
	verifier  *Verifier
	services  []Service
	set       *Set
	providers []*Provider // in the order in which their tokens count
	outputs   []string    // headers that clients may not send
	refusal   *reason.Error

	tries  int // keys that may still be tried for this request
	found  []found
	claims []*jwt.Claims
	// Scratch: decoded, of parameters, and the path without them.
	decoded, path []byte
}

// found is a token of the request.
type found struct {
	at       at
	text     []byte
	sum      jwt.Sum
	summed   bool
	token    *jwt.Token
	refusal  jwt.Refusal
	by       *Provider // that accepted it
	accepted *accepted
	err      *reason.Error // of the provider whose refusal counts
	known    bool          // that refusal is of the token's own issuer
}

// NewCheck returns the Check of a connection to services.
func NewCheck(v *Verifier, services []Service) *Check { return &Check{verifier: v, services: services} }

// Services makes the connection one to other services.
func (c *Check) Services(services []Service) {
	c.services = services
	if c.set != nil {
		c.look()
	}
}

// Request takes a request whose path is in its normal form, at a moment. It returns why
// the request is refused, or nil. Afterwards the head is as programs get it: without
// the headers that clients may not send, and with what tokens give.
func (c *Check) Request(s *Set, h *message.Head, now time.Time) *reason.Error {
	c.verifier.use(s)
	if c.set != s {
		c.set = s
		c.look()
	}
	c.claims = c.claims[:0]
	if c.refusal != nil || len(c.providers) == 0 {
		return c.refusal
	}
	c.reset()
	var err *reason.Error
	if !preflight(h) {
		err = c.verify(h, now)
	}
	c.edit(h, err == nil)
	return err
}

// Claims returns those of the tokens of the last request, the one that counts first.
// They are valid until the next.
func (c *Check) Claims() []*jwt.Claims { return c.claims }

// look finds the providers for the services.
func (c *Check) look() {
	c.providers, c.outputs, c.refusal = c.providers[:0], c.outputs[:0], nil
	add := func(g *group) {
		if g == nil {
			return
		}
		c.providers, c.outputs = append(c.providers, g.providers...), append(c.outputs, g.outputs...)
		if c.refusal == nil {
			c.refusal = g.refusal
		}
	}
	add(c.set.everything)
	for _, s := range c.services {
		add(c.set.services[s])
	}
	sortProviders(c.providers)
}

var (
	keyOrigin        = message.NewKey("origin")
	keyRequestMethod = message.NewKey("access-control-request-method")
)

// preflight reports whether a request is one that asks on behalf of another, which will
// carry the token (Fetch, 3.2.2).
func preflight(h *message.Head) bool {
	return string(h.Method) == "OPTIONS" && h.Find(keyOrigin, 0) >= 0 && h.Find(keyRequestMethod, 0) >= 0
}

// verify finds the tokens of a request and has each of them accepted by a provider that
// looks for tokens at its place.
func (c *Check) verify(h *message.Head, now time.Time) *reason.Error {
	for _, p := range c.providers {
		if !c.find(h, p, now) {
			c.claims = c.claims[:0]
			return p.refused[jwt.TooMany]
		}
	}
	for i := range c.found {
		if f := &c.found[i]; f.by == nil {
			c.claims = c.claims[:0]
			return f.err
		}
	}
	return nil
}

// offer has a provider look at a token.
func (c *Check) offer(p *Provider, at at, text []byte, now time.Time) bool {
	var f *found
	for i := range c.found {
		if c.found[i].at == at {
			f = &c.found[i]
		}
	}
	if f == nil {
		if len(c.found) == maxTokens {
			return false
		}
		c.found = append(c.found, found{at: at, text: text})
		f = &c.found[len(c.found)-1]
	}
	if f.by != nil {
		return true
	}
	if len(text) <= jwt.MaxToken {
		if !f.summed {
			f.sum, f.summed = jwt.SumOf(text), true
		}
		if a, ok := c.verifier.cache.Get(p, &f.sum, now); ok {
			c.accept(f, p, a)
			return true
		}
	}
	if f.token == nil && f.refusal == jwt.Accepted {
		f.token, f.refusal = jwt.Parse(text)
	}
	refusal := f.refusal
	if refusal == jwt.Accepted {
		var claims *jwt.Claims
		if claims, refusal = f.token.CheckWithin(&p.rule, now, &c.tries); refusal == jwt.Accepted {
			a := p.accept(claims)
			c.verifier.cache.Put(p, &f.sum, len(text), claims, a)
			c.accept(f, p, a)
			return true
		}
	}
	if known := refusal != jwt.UnknownIssuer; f.err == nil || known && !f.known {
		f.err, f.known = p.refused[refusal], known
	}
	return true
}

func (c *Check) accept(f *found, p *Provider, a *accepted) {
	f.by, f.accepted = p, a
	c.claims = append(c.claims, a.claims)
}

// accept makes what is kept of a token. A claim that no header can carry gives none.
func (p *Provider) accept(claims *jwt.Claims) *accepted {
	a := &accepted{claims: claims}
	for _, o := range p.outputs {
		if text, ok := claims.Text(o.path); ok && message.CheckValue(text) == nil {
			a.headers = append(a.headers, value{o.key, []byte(text)})
		}
	}
	return a
}

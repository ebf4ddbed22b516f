// Package extauthz is how a gateway asks an external authorizer about a request: what it
// sends, by gRPC (envoy.service.auth.v3.Authorization) or by HTTP, and what it makes of
// the answer. It performs no IO.
//
// The invariant: only an answer that is an allow, and that can be applied as it is, lets
// a request pass. The one exception is an authorizer that fails open and could not be
// asked.
package extauthz

import (
	"errors"
	"fmt"
	"strings"
	"time"

	authzpb "github.com/ambit-mesh/ambit/api/authz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// Bounds of a provider.
const (
	// MaxBody bounds the bytes of a body that an authorizer gets.
	MaxBody = 4 << 20
	// MaxTimeout bounds how long a request waits for an answer.
	MaxTimeout = 10 * time.Minute
	// maxHeaders bounds each list of headers.
	maxHeaders = 256
)

// Provider is an external authorizer. It is immutable.
type Provider struct {
	Name                string
	Namespace, Hostname string // of the service; no namespace: it is looked up by its host name
	Port                uint16
	Timeout             time.Duration
	FailOpen            bool // it lets pass what it could not be asked about
	StatusOnError       int
	RecomputeRoute      bool
	Body                Body
	GRPC                bool

	source                        *authzpb.Provider
	prefix                        string // of the path, by HTTP
	include                       patterns
	add                           []field
	toUpstream                    patterns
	allToUpstream                 bool
	toClientOnAllow, toClientDeny patterns
}

// Body is what an authorizer gets of the body. Max is 0 for nothing.
type Body struct {
	Max     int
	Partial bool // of a larger body the beginning
	Raw     bool // by gRPC as bytes
}

// Proto returns the message that the provider was compiled from.
func (p *Provider) Proto() *authzpb.Provider { return p.source }

// String names the provider and where it is asked.
func (p *Provider) String() string {
	protocol := "HTTP"
	if p.GRPC {
		protocol = "gRPC"
	}
	return fmt.Sprintf("%s (%s to %s:%d)", p.Name, protocol, p.Hostname, p.Port)
}

type field struct {
	key   message.Key
	value format
}

// Compile compiles a provider, or returns which field of it a gateway cannot execute, and
// why.
func Compile(pb *authzpb.Provider) (p *Provider, err error) {
	p = &Provider{
		Name: pb.GetName(), Namespace: pb.GetNamespace(), Hostname: pb.GetHostname(), Port: uint16(pb.GetPort()), Timeout: time.Duration(pb.GetTimeoutMs()) * time.Millisecond,
		source: pb, FailOpen: pb.GetFailOpen(), StatusOnError: int(pb.GetStatusOnError()), RecomputeRoute: pb.GetRecomputeRoute(),
		Body: Body{int(pb.GetBody().GetMaxBytes()), pb.GetBody().GetAllowPartial(), pb.GetBody().GetRaw()},
	}
	switch {
	case p.Name == "":
		return nil, errors.New("name: it is empty")
	case p.Hostname == "" || p.Hostname != strings.ToLower(p.Hostname) || strings.ContainsAny(p.Hostname, "*/: ") || message.CheckAuthority(p.Hostname) != nil:
		return nil, fmt.Errorf("service: %q is no host name in lower case", p.Hostname)
	case pb.GetPort() == 0 || pb.GetPort() > 65535:
		return nil, fmt.Errorf("port: %d is not 1 to 65535", pb.GetPort())
	case p.Timeout <= 0 || p.Timeout > MaxTimeout:
		return nil, fmt.Errorf("timeout: %s is not 1ms to %s", p.Timeout, MaxTimeout)
	case p.StatusOnError < 400 || p.StatusOnError > 599:
		return nil, fmt.Errorf("statusOnError: %d is not 400 to 599", p.StatusOnError)
	case pb.GetBody() != nil && (pb.GetBody().GetMaxBytes() == 0 || pb.GetBody().GetMaxBytes() > MaxBody):
		return nil, fmt.Errorf("includeRequestBodyInCheck.maxRequestBytes: %d is not 1 to %d", pb.GetBody().GetMaxBytes(), MaxBody)
	}
	switch x := pb.GetProtocol().(type) {
	case *authzpb.Provider_Grpc:
		p.GRPC = true
		p.include, err = compilePatterns("includeRequestHeadersInCheck", x.Grpc.GetIncludeHeaders(), false)
		return p, err
	case *authzpb.Provider_Http:
		return p, p.http(x.Http)
	}
	return nil, errors.New("protocol: neither HTTP nor gRPC")
}

// http takes over what only a provider by HTTP has.
func (p *Provider) http(pb *authzpb.HTTPCheck) (err error) {
	p.prefix = pb.GetPathPrefix()
	probe := message.Head{Method: []byte("GET"), Authority: []byte("a"), Path: []byte(p.prefix)}
	if p.prefix != "" && (probe.CheckRequest() != nil || strings.Contains(p.prefix, "?")) {
		return fmt.Errorf("pathPrefix: %q is no path that begins with /", p.prefix)
	}
	list := func(name string, from []string, forUpstream bool) patterns {
		out, bad := compilePatterns(name, from, forUpstream)
		if err == nil {
			err = bad
		}
		return out
	}
	p.include = list("includeRequestHeadersInCheck", pb.GetIncludeHeaders(), false)
	p.toUpstream = list("headersToUpstreamOnAllow", pb.GetToUpstream(), true)
	p.allToUpstream = pb.GetAllToUpstream()
	if p.allToUpstream && len(p.toUpstream) > 0 {
		return errors.New("headersToUpstreamOnAllow: some, and all")
	}
	p.toClientOnAllow = list("headersToDownstreamOnAllow", pb.GetToClientOnAllow(), false)
	p.toClientDeny = list("headersToDownstreamOnDeny", pb.GetToClientOnDeny(), false)
	if len(pb.GetAddHeaders()) > maxHeaders {
		return fmt.Errorf("includeAdditionalHeadersInCheck: %d headers, at most %d", len(pb.GetAddHeaders()), maxHeaders)
	}
	for _, h := range pb.GetAddHeaders() {
		name := strings.ToLower(h.GetName())
		_, fault := message.CheckName(name)
		switch {
		case fault != nil:
			return fmt.Errorf("includeAdditionalHeadersInCheck: %q: %w", h.GetName(), fault)
		case Reserved(name):
			return fmt.Errorf("includeAdditionalHeadersInCheck: %q: %w", h.GetName(), errReserved)
		case message.CheckValue(h.GetValue()) != nil:
			return fmt.Errorf("includeAdditionalHeadersInCheck: %q: %w", h.GetName(), message.CheckValue(h.GetValue()))
		}
		value, bad := compileFormat(h.GetValue())
		if bad != nil {
			return fmt.Errorf("includeAdditionalHeadersInCheck: %q: %w", h.GetName(), bad)
		}
		p.add = append(p.add, field{message.NewKey(name), value})
	}
	return err
}

var errReserved = errors.New("the header decides where a message goes or ends, or who sent it")

// framing are headers that say where a message goes and ends, and who sent it.
var framing = [...]message.Name{
	message.Host, message.Connection, message.ContentLength, message.TransferEncoding, message.TE, message.TrailerName, message.Upgrade,
	message.KeepAlive, message.ProxyConnection, message.HTTP2Settings, message.Expect, message.XForwardedClientCert,
}

// own are the beginnings of names that proxies use among themselves.
var own = [...]string{"x-ambit-", "x-envoy-"}

// Reserved reports whether no authorizer may write a header: it decides where a message
// goes or ends, or proxies alone write it. The case does not count, and an underscore is a
// hyphen, as for programs that make variables of names.
func Reserved[T []byte | string](name T) bool {
	plain := strings.ReplaceAll(strings.ToLower(string(name)), "_", "-")
	if strings.HasPrefix(plain, ":") {
		return true
	}
	for _, p := range own {
		if strings.HasPrefix(plain, p) {
			return true
		}
	}
	id := message.Lookup(plain)
	for _, f := range framing {
		if f == id {
			return true
		}
	}
	return false
}

type kind uint8

const (
	exact kind = iota
	prefix
	suffix
)

// pattern is the name of a header, or its beginning or end, in lower case.
type pattern struct {
	kind kind
	text string
}

type patterns []pattern

// compilePatterns reads the names of a list. Those of headers for a destination may not be
// reserved.
func compilePatterns(list string, from []string, forUpstream bool) (out patterns, err error) {
	if len(from) > maxHeaders {
		return nil, fmt.Errorf("%s: %d names, at most %d", list, len(from), maxHeaders)
	}
	for i, text := range from {
		one, bad := compilePattern(text)
		if bad == nil && forUpstream && one.kind == exact && Reserved(one.text) {
			bad = errReserved
		}
		if bad != nil {
			return nil, fmt.Errorf("%s[%d]: %q: %w", list, i, text, bad)
		}
		out = append(out, one)
	}
	return out, nil
}

// compilePattern reads name, name* or *name.
func compilePattern(text string) (pattern, error) {
	p := pattern{exact, strings.ToLower(text)}
	if rest, ok := strings.CutSuffix(p.text, "*"); ok {
		p = pattern{prefix, rest}
	} else if rest, ok := strings.CutPrefix(p.text, "*"); ok {
		p = pattern{suffix, rest}
	}
	if p.text == "" {
		return p, errors.New("it would be every header; name a header, or its beginning or end")
	}
	if !message.Token([]byte(p.text)) || strings.Contains(p.text, "*") {
		return p, errors.New("it is no name of a header")
	}
	return p, nil
}

// has reports whether a name is one of the patterns. loose: an underscore is a hyphen.
func (all patterns) has(name []byte, loose bool) bool {
	for _, p := range all {
		part := name
		switch {
		case len(name) < len(p.text):
			continue
		case p.kind == exact && len(name) != len(p.text):
			continue
		case p.kind == prefix:
			part = name[:len(p.text)]
		case p.kind == suffix:
			part = name[len(name)-len(p.text):]
		}
		if resembles(part, p.text, loose) {
			return true
		}
	}
	return false
}

func resembles(a []byte, b string, loose bool) bool {
	for i, x := range a {
		y := b[i]
		if 'A' <= x && x <= 'Z' {
			x += 'a' - 'A'
		}
		if loose && x == '_' {
			x = '-'
		}
		if loose && y == '_' {
			y = '-'
		}
		if x != y {
			return false
		}
	}
	return true
}

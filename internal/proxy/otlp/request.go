package otlp

import (
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"
)

// Numbers of fields of the request (opentelemetry/proto/collector/trace/v1, trace/v1,
// resource/v1). Those of log records are the same.
const (
	requestResources  = 1
	resourcesResource = 1
	resourcesScopes   = 2
	resourceAttribute = 1
	scopesScope       = 1
	scopesItems       = 2
	scopeName         = 1
	scopeVersion      = 2
)

// Prefix is what comes before the messages of every request: the process that sends them.
type Prefix struct {
	resource, scope []byte
}

// Attribute is a key and its value.
type Attribute struct{ Key, Value string }

// NewPrefix makes the prefix of a process, whose attributes without values are left out.
func NewPrefix(program, version string, attributes []Attribute) *Prefix {
	p := &Prefix{}
	e := Encoder{attributes: resourceAttribute}
	for _, a := range attributes {
		String(&e, a.Key, a.Value)
	}
	p.resource = protowire.AppendBytes(protowire.AppendTag(nil, resourcesResource, protowire.BytesType), e.b)
	scope := protowire.AppendString(protowire.AppendTag(nil, scopeName, protowire.BytesType), program)
	scope = protowire.AppendString(protowire.AppendTag(scope, scopeVersion, protowire.BytesType), version)
	p.scope = protowire.AppendBytes(protowire.AppendTag(nil, scopesScope, protowire.BytesType), scope)
	return p
}

// Message appends one span or log record as an element of a request.
func Message(dst, body []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(dst, scopesItems, protowire.BytesType), body)
}

// grpcHead is the length of a frame's head in gRPC.
const grpcHead = 5

// Request appends a request with messages that Message has made. framed: as a frame of
// gRPC.
func (p *Prefix) Request(dst []byte, messages []byte, framed bool) []byte {
	at := len(dst)
	if framed {
		dst = append(dst, make([]byte, grpcHead)...)
	}
	scopes := len(p.scope) + len(messages)
	resources := len(p.resource) + protowire.SizeTag(resourcesScopes) + protowire.SizeBytes(scopes)
	dst = protowire.AppendVarint(protowire.AppendTag(dst, requestResources, protowire.BytesType), uint64(resources))
	dst = append(dst, p.resource...)
	dst = protowire.AppendVarint(protowire.AppendTag(dst, resourcesScopes, protowire.BytesType), uint64(scopes))
	dst = append(append(dst, p.scope...), messages...)
	if framed {
		binary.BigEndian.PutUint32(dst[at+1:], uint32(len(dst)-at-grpcHead))
	}
	return dst
}

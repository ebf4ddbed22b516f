package xds

import (
	"cmp"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Numbers of the fields of DeltaDiscoveryResponse, Resource and Any.
const (
	fieldInfo, fieldResources, fieldType, fieldNonce, fieldRemoved, fieldControlPlane = 1, 2, 4, 5, 6, 7
	fieldIdentifier                                                                   = 1 // of the control plane

	fieldVersion, fieldBody, fieldName, fieldAliases = 1, 2, 3, 4

	fieldAnyType, fieldAnyValue = 1, 2
)

// Numbers of the field of DeltaDiscoveryRequest that lists what a client has,
// and of the parts of its entries.
const fieldKnown, fieldKey, fieldValue = 5, 1, 2

// NewResource makes a resource in the form in which every client is sent it,
// with the version that VersionOf has for its body.
func NewResource(typeURL, name string, aliases []string, body []byte) *Resource {
	return (&Resource{Name: name, Body: body, Aliases: aliases}).sealed(typeURL)
}

// sealed returns a resource with its wire form, of which the body is a part:
// both in one piece of memory, whoever keeps the resource.
func (r *Resource) sealed(typeURL string) *Resource {
	if r.wire != nil {
		return r
	}
	out := *r
	out.Version = cmp.Or(out.Version, VersionOf(out.Body))
	out.Body, out.wire = out.marshal(typeURL)
	return &out
}

// marshal returns the resource as a field of a response, and the body in it.
func (r *Resource) marshal(typeURL string) (body []byte, wire mem.Buffer) {
	anySize := sizeBytes(fieldAnyType, len(typeURL)) + sizeBytes(fieldAnyValue, len(r.Body))
	size := sizeBytes(fieldVersion, len(r.Version)) + sizeBytes(fieldName, len(r.Name)) + sizeBytes(fieldBody, anySize)
	for _, a := range r.Aliases {
		size += sizeBytes(fieldAliases, len(a))
	}
	b := make([]byte, 0, sizeBytes(fieldResources, size))
	b = appendLength(b, fieldResources, size)
	b = appendString(b, fieldVersion, r.Version)
	b = appendString(b, fieldName, r.Name)
	for _, a := range r.Aliases {
		b = appendString(b, fieldAliases, a)
	}
	b = appendLength(b, fieldBody, anySize)
	b = appendString(b, fieldAnyType, typeURL)
	b = appendLength(b, fieldAnyValue, len(r.Body))
	head := len(b)
	b = append(b, r.Body...)
	return b[head:], mem.SliceBuffer(b)
}

// listed is the size of the resource in a list of what a client has.
func (r *Resource) listed() int {
	return sizeBytes(fieldKnown, sizeBytes(fieldKey, len(r.Name))+sizeBytes(fieldValue, len(r.Version)))
}

// sizeBytes is the size of a field of n bytes, with its tag and length.
func sizeBytes(field protowire.Number, n int) int {
	return protowire.SizeTag(field) + protowire.SizeBytes(n)
}

func appendLength(b []byte, field protowire.Number, n int) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.BytesType), uint64(n))
}

func appendString(b []byte, field protowire.Number, s string) []byte {
	return append(appendLength(b, field, len(s)), s...)
}

// reply is what a client is sent: resources in their wire form, which all
// clients share, and a few bytes of its own.
type reply struct {
	typeURL, nonce string
	partial        bool // continued in the next
	removed        []string
	// parts are the resources; the first is kept free for the client's own.
	parts []mem.Buffer
	bytes int // of the resources' bodies
}

func (r *reply) resources() int { return len(r.parts) - 1 }

// grow makes room for n resources.
func (r *reply) grow(n int) { r.parts = make([]mem.Buffer, 1, 1+n) }

func (r *reply) add(res *Resource) {
	r.parts = append(r.parts, res.wire)
	r.bytes += len(res.Body)
}

// sender is the field of a response that names who sends it.
var sender = appendString(appendLength(nil, fieldControlPlane, sizeBytes(fieldIdentifier, len(ControlPlane))), fieldIdentifier, ControlPlane)

// wire is the marshalled message.
func (r *reply) wire() mem.BufferSlice {
	var b []byte
	if r.partial {
		b = appendString(b, fieldInfo, partialVersion)
	}
	b = appendString(b, fieldType, r.typeURL)
	b = appendString(b, fieldNonce, r.nonce)
	for _, name := range r.removed {
		b = appendString(b, fieldRemoved, name)
	}
	b = append(b, sender...)
	r.parts[0] = mem.SliceBuffer(b)
	return r.parts
}

// request is what a client says. What it has is not made objects of: that is
// as much as the mesh's names, from every client that comes back.
type request struct {
	discovery.DeltaDiscoveryRequest // without InitialResourceVersions
	// raw is the message when it lists what the client has; it is in buffer.
	raw    []byte
	buffer mem.Buffer
}

// free ends the use of what the client has.
func (r *request) free() {
	if r.buffer != nil {
		r.buffer.Free()
		r.raw, r.buffer = nil, nil
	}
}

// knows reports whether the client lists anything.
func (r *request) knows() bool { return r != nil && r.raw != nil }

// known calls f with everything that the client has. A name that is listed
// twice is there twice.
func (r *request) known(f func(name, version []byte)) {
	_ = fields(r.raw, func(num protowire.Number, _, v []byte) error { // was read before
		if num != fieldKnown || v == nil {
			return nil
		}
		var name, version []byte
		err := fields(v, func(num protowire.Number, _, v []byte) error {
			switch {
			case num == fieldKey && v != nil:
				name = v
			case num == fieldValue && v != nil:
				version = v
			}
			return nil
		})
		f(name, version)
		return err
	})
}

// versions is what the client has, by name.
func (r *request) versions() map[string]string {
	if !r.knows() {
		return nil
	}
	out := map[string]string{}
	r.known(func(name, version []byte) { out[string(name)] = string(version) })
	return out
}

// unmarshal reads a message, which the request keeps until it is freed when it
// lists what the client has.
func (r *request) unmarshal(buffer mem.Buffer) error {
	msg := buffer.ReadOnlyData()
	var rest []byte
	listed := false
	err := fields(msg, func(num protowire.Number, field, v []byte) error {
		if num != fieldKnown || v == nil {
			rest = append(rest, field...)
			return nil
		}
		listed = true
		return fields(v, func(protowire.Number, []byte, []byte) error { return nil })
	})
	if listed && err == nil {
		r.raw, r.buffer = msg, buffer
	} else {
		buffer.Free()
	}
	if err != nil {
		return err
	}
	return proto.Unmarshal(rest, &r.DeltaDiscoveryRequest)
}

// fields calls f with every field of a message, and with its value when that
// has a length; nil when it has none.
func fields(msg []byte, f func(num protowire.Number, field, value []byte) error) error {
	for len(msg) > 0 {
		num, typ, tag := protowire.ConsumeTag(msg)
		if tag < 0 {
			return protowire.ParseError(tag)
		}
		n := protowire.ConsumeFieldValue(num, typ, msg[tag:])
		if n < 0 {
			return protowire.ParseError(n)
		}
		var value []byte
		if typ == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(msg[tag:])
		}
		if err := f(num, msg[:tag+n], value); err != nil {
			return err
		}
		msg = msg[tag+n:]
	}
	return nil
}

// codec is gRPC's own, but for replies, which are marshalled already and are
// not copied for each client, and requests.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(grpcproto.Name)} }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if r, ok := v.(*reply); ok {
		return r.wire(), nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	if r, ok := v.(*request); ok {
		return r.unmarshal(data.MaterializeToBuffer(mem.DefaultBufferPool()))
	}
	return c.CodecV2.Unmarshal(data, v)
}

package extauthz

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	extauthzpb "github.com/ambit-mesh/ambit/api/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// Token is a token of a user that was verified.
type Token interface {
	// JSON returns its claims.
	JSON() ([]byte, error)
}

// Question is what is known of a request that an authorizer is asked about.
type Question struct {
	Request *message.Head
	TLS     bool
	Time    time.Time
	// Source is the client, Principal its identity as a URI, "" for none.
	Source    netip.AddrPort
	Principal string
	// Called is the destination as the client called it, Self the identity of the gateway.
	Called netip.AddrPort
	Self   string
	// Token has the claims of the verified token that counts first; nil for none.
	Token Token
	// Metadata is that of the authorizers that were asked before.
	Metadata *Metadata
	// Length of the body, -1 when it is not known. Body is what the authorizer gets of it,
	// Partial that this is the beginning only.
	Length  int64
	Body    []byte
	Partial bool
}

const (
	methodCheck   = "/envoy.service.auth.v3.Authorization/Check"
	partialHeader = "x-envoy-auth-partial-body"
	// claimsOf is where authorizers look for the claims of a token: the name of the filter
	// that verifies tokens in Envoy.
	claimsOf = "envoy.filters.http.jwt_authn"
)

var (
	errConnect = errors.New("an authorizer by HTTP cannot be asked about CONNECT; use gRPC")
	errPath    = errors.New("an authorizer by HTTP cannot be asked about a request without a path; use gRPC")
)

var (
	keyContentType   = message.NewKey("content-type")
	keyTE            = message.NewKey("te")
	keyPartial       = message.NewKey(partialHeader)
	keyAuthorization = message.NewKey("authorization")
)

// Write makes the head and the body of the request to an authorizer. head is empty.
func (p *Provider) Write(q *Question, head *message.Head) (body []byte, err error) {
	if !p.GRPC {
		return q.Body, p.writeHTTP(q, head)
	}
	head.Method, head.Scheme = []byte("POST"), []byte("http")
	head.SetAuthority([]byte(p.Hostname + ":" + strconv.Itoa(int(p.Port))))
	head.SetPath([]byte(methodCheck))
	head.Add(keyContentType, []byte("application/grpc"))
	head.Add(keyTE, []byte("trailers"))
	frame := make([]byte, frameHead, frameHead+len(q.Body)+1024)
	if frame, err = (proto.MarshalOptions{}).MarshalAppend(frame, p.message(q)); err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint32(frame[1:], uint32(len(frame)-frameHead))
	return frame, nil
}

// frameHead is the size of what stands before a message of gRPC: flags and a length.
const frameHead = 5

// writeHTTP makes the request by HTTP: that of the client under a prefix, with the headers
// that were chosen.
func (p *Provider) writeHTTP(q *Question, head *message.Head) error {
	r := q.Request
	method := r.Method
	if string(method) == "CONNECT" {
		if len(r.Protocol) == 0 {
			return errConnect
		}
		method = []byte("GET") // as HTTP/1 asks to switch
	}
	if len(r.Path) == 0 || r.Path[0] != '/' {
		return errPath
	}
	head.Method, head.Scheme = append([]byte(nil), method...), []byte("http")
	head.SetAuthority(r.Authority)
	head.SetPath(append([]byte(p.prefix), r.Path...))
	for i := range r.Fields {
		f := &r.Fields[i]
		if Reserved(f.Name) || !keyAuthorization.Is(f) && !p.include.has(f.Name, false) {
			continue
		}
		head.Add(message.NewKey(strings.ToLower(string(f.Name))), f.Value)
	}
	for _, f := range p.add {
		if v := f.value.of(q); len(v) > 0 {
			head.Set(f.key, v)
		} else {
			head.Remove(f.key)
		}
	}
	if p.Body.Max > 0 {
		head.Set(keyPartial, strconv.AppendBool(nil, q.Partial))
	}
	return nil
}

// message returns the question by gRPC.
func (p *Provider) message(q *Question) *extauthzpb.CheckRequest {
	r := q.Request
	http := &extauthzpb.HTTPRequest{
		Id: text(r.Get(message.XRequestID)), Method: text(r.Method), Path: text(r.Path), Host: text(r.Authority), Scheme: q.scheme(),
		Size: q.Length, Protocol: "HTTP/1.1", Headers: p.headers(q),
	}
	switch r.Version {
	case message.HTTP11:
	case message.HTTP2:
		http.Protocol = "HTTP/2"
	case message.HTTP10:
		http.Protocol = "HTTP/1.0"
	}
	if p.Body.Raw {
		http.RawBody = q.Body
	} else {
		http.Body = text(q.Body)
	}
	a := &extauthzpb.Attributes{
		Source:      &extauthzpb.Peer{Address: address(q.Source), Principal: q.Principal},
		Destination: &extauthzpb.Peer{Address: address(q.Called), Principal: q.Self},
		Request:     &extauthzpb.Request{Time: timestamppb.New(q.Time), Http: http},
	}
	known := map[string]*structpb.Struct{}
	if m := metadata(q.Token); m != nil {
		known[claimsOf] = m
	}
	if m := q.Metadata.proto(); m != nil {
		known[MetadataNamespace] = m
	}
	if len(known) > 0 {
		a.MetadataContext = &extauthzpb.Metadata{FilterMetadata: known}
	}
	return &extauthzpb.CheckRequest{Attributes: a}
}

// headers returns those of the request in lower case, several of one name as one.
func (p *Provider) headers(q *Question) map[string]string {
	r := q.Request
	out := make(map[string]string, len(r.Fields)+4)
	for name, v := range map[string][]byte{":authority": r.Authority, ":method": r.Method, ":path": r.Path} {
		if len(v) > 0 {
			out[name] = text(v)
		}
	}
	out[":scheme"] = q.scheme()
	for i := range r.Fields {
		if len(p.include) > 0 && !p.include.has(r.Fields[i].Name, false) {
			continue
		}
		name, v := strings.ToLower(string(r.Fields[i].Name)), text(r.Fields[i].Value)
		if before, is := out[name]; is {
			v = before + "," + v
		}
		out[name] = v
	}
	if p.Body.Max > 0 {
		out[partialHeader] = strconv.FormatBool(q.Partial)
	}
	return out
}

// text returns bytes as a string of protobuf, which is UTF-8.
func text(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}

func address(a netip.AddrPort) *extauthzpb.Address {
	if !a.IsValid() {
		return nil
	}
	return &extauthzpb.Address{SocketAddress: &extauthzpb.SocketAddress{Address: a.Addr().Unmap().String(), PortValue: uint32(a.Port())}}
}

// metadata returns the claims of a token; nil without one.
func metadata(t Token) *structpb.Struct {
	if t == nil {
		return nil
	}
	payload := &structpb.Struct{}
	if b, err := t.JSON(); err != nil || payload.UnmarshalJSON(b) != nil {
		return nil
	}
	return &structpb.Struct{Fields: map[string]*structpb.Value{"payload": structpb.NewStructValue(payload)}}
}

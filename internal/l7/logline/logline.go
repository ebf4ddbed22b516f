// Package logline is lines of access logs in formats that users write, with Envoy's
// command operators. A format is compiled once; a line costs no memory.
package logline

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// Values are what happened to a request, or to a connection that carried no HTTP. Empty
// ones are written as "-", in JSON as null. The byte slices are those of messages.
type Values struct {
	Start             time.Time
	Duration          time.Duration
	FirstByte         time.Duration // 0 without a response
	Answered          bool          // by an endpoint
	Method, Path      []byte
	Authority         []byte
	Head              *message.Head // of the request; nil without HTTP
	Protocol          string
	Status            int
	Flags, Details    string
	Failure           string // why there was no connection to the endpoint
	Received, Sent    int64
	Heads             struct{ Request, Response int64 }
	Tries             int
	GRPC              bool
	GRPCStatus        int // -1 without one
	Upstream          netip.AddrPort
	Called, Client    netip.AddrPort
	ClusterKind       string // http or tcp
	ClusterHost       string // "" when no service was chosen
	ClusterPort       uint16
	Route             string
	TraceID           []byte
	Source, Dest      string // identities
	Reason, Policy    string
	SourceWorkload    string
	SourceNamespace   string
	EndpointWorkload  string
	EndpointNamespace string
	Metadata          *extauthz.Metadata // of external authorizers
}

// DefaultText is Istio's default format.
const DefaultText = `[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% ` +
	`%CONNECTION_TERMINATION_DETAILS% "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% ` +
	`"%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%" "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW% ` +
	`%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% %REQUESTED_SERVER_NAME% %ROUTE_NAME%` + "\n"

// Label is a key of a line in JSON, and the format of its value.
type Label struct{ Name, Format string }

// DefaultLabels are Istio's default keys.
var DefaultLabels = []Label{
	{"start_time", "%START_TIME%"}, {"method", "%REQ(:METHOD)%"}, {"path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"}, {"protocol", "%PROTOCOL%"},
	{"response_code", "%RESPONSE_CODE%"}, {"response_flags", "%RESPONSE_FLAGS%"}, {"response_code_details", "%RESPONSE_CODE_DETAILS%"},
	{"connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"}, {"upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"},
	{"bytes_received", "%BYTES_RECEIVED%"}, {"bytes_sent", "%BYTES_SENT%"}, {"duration", "%DURATION%"}, {"upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"},
	{"x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"}, {"user_agent", "%REQ(USER-AGENT)%"}, {"request_id", "%REQ(X-REQUEST-ID)%"}, {"authority", "%REQ(:AUTHORITY)%"},
	{"upstream_host", "%UPSTREAM_HOST%"}, {"upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"}, {"upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"},
	{"downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"}, {"downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"},
	{"requested_server_name", "%REQUESTED_SERVER_NAME%"}, {"route_name", "%ROUTE_NAME%"},
}

// Format is a compiled format. It is immutable, and may be used by any goroutine.
type Format struct {
	parts  []part  // of a line of text
	fields []field // of one in JSON
	omit   bool
}

// Labels calls f with the name and the value of each key, as text. The value is valid
// during the call; scratch is memory for it.
func (f *Format) Labels(v *Values, scratch []byte, each func(name string, value []byte)) []byte {
	for i := range f.fields {
		scratch = scratch[:0]
		for j := range f.fields[i].parts {
			scratch = f.fields[i].parts[j].append(scratch, v)
		}
		each(f.fields[i].name, scratch)
	}
	return scratch
}

// field is a key of JSON.
type field struct {
	name  string
	key   string // encoded, with what stands before the value
	parts []part
}

// part is a piece of text, or an operator.
type part struct {
	text string
	op   *operator
	arg  argument
	max  int // bytes; 0 is no bound
}

// argument is what stands in the brackets of an operator.
type argument struct {
	first, second message.Key // of headers
	pseudo        [2]pseudo
	both          bool
	text          string // of an operator whose value is constant
	path          []string
}

// Append appends the line of a request.
func (f *Format) Append(b []byte, v *Values) []byte {
	if f.fields != nil {
		return f.appendJSON(b, v)
	}
	for i := range f.parts {
		b = f.parts[i].append(b, v)
	}
	return b
}

// append appends a part as text. What others chose cannot end its quotes or the line.
func (p *part) append(b []byte, v *Values) []byte {
	if p.op == nil {
		return append(b, p.text...)
	}
	at := len(b)
	switch p.op.kind {
	case isNumber:
		n, ok := p.op.number(v)
		if !ok {
			return append(b, '-')
		}
		b = appendInt(b, n)
	case isText:
		if b = p.op.text(b, v, &p.arg); len(b) == at {
			return append(b, '-')
		}
		if p.max > 0 && len(b)-at > p.max {
			b = b[:at+p.max]
		}
		if p.op.foreign {
			b = escape(b, at)
		}
		if p.op.spaced && bytes.IndexByte(b[at:], ' ') >= 0 {
			b = insert(b, at, 1)
			b[at] = '"'
			b = append(b, '"')
		}
	}
	return b
}

func (f *Format) appendJSON(b []byte, v *Values) []byte {
	b = append(b, '{')
	first := true
	for i := range f.fields {
		at := len(b)
		if !first {
			b = append(b, ',')
		}
		b = append(b, f.fields[i].key...)
		var empty bool
		if b, empty = f.fields[i].value(b, v); empty && f.omit {
			b = b[:at]
			continue
		}
		first = false
	}
	return append(b, "}\n"...)
}

// value appends the value of a key: a number or null where the format is one operator.
func (f *field) value(b []byte, v *Values) (out []byte, empty bool) {
	if len(f.parts) == 1 && f.parts[0].op != nil {
		p := &f.parts[0]
		if p.op.kind == isNumber {
			n, ok := p.op.number(v)
			if !ok {
				return append(b, "null"...), true
			}
			return appendInt(b, n), false
		}
		b = append(b, '"')
		at := len(b)
		if b = p.op.text(b, v, &p.arg); len(b) == at || len(b) == at+1 && b[at] == '-' && !p.op.foreign && p.op.dash {
			return append(b[:at-1], "null"...), true
		}
		if p.max > 0 && len(b)-at > p.max {
			b = b[:at+p.max]
		}
		return append(escapeJSON(b, at), '"'), false
	}
	b = append(b, '"')
	for i := range f.parts {
		p, at := &f.parts[i], len(b)
		switch {
		case p.op == nil:
			b = escapeJSON(append(b, p.text...), at)
		case p.op.kind == isText:
			if b = p.op.text(b, v, &p.arg); len(b) == at {
				b = append(b, '-')
			}
			if p.max > 0 && len(b)-at > p.max {
				b = b[:at+p.max]
			}
			b = escapeJSON(b, at)
		default:
			b = p.append(b, v)
		}
	}
	return append(b, '"'), false
}

package logline

import (
	"net/netip"
	"strconv"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// kind is what an operator writes.
type kind uint8

const (
	isText kind = iota
	isNumber
)

// operator is one of Envoy's command operators.
type operator struct {
	kind   kind
	text   func(b []byte, v *Values, a *argument) []byte // appends nothing for no value
	number func(v *Values) (int64, bool)
	// foreign: others chose the text.
	foreign bool
	// spaced: as text, a value with spaces has quotes, so that it is one field.
	spaced bool
	// dash: a lone hyphen is no value.
	dash bool
	// compile reads what stands in brackets; nil permits none.
	compile func(text string, a *argument) error
}

// pseudo is a part of the request that REQ names as a header.
type pseudo uint8

const (
	noPseudo pseudo = iota
	pseudoMethod
	pseudoPath
	pseudoAuthority
	pseudoScheme
)

func number(f func(*Values) int64) *operator {
	return &operator{kind: isNumber, number: func(v *Values) (int64, bool) { return f(v), true }}
}

func text(f func(*Values) string) *operator {
	return &operator{foreign: true, text: func(b []byte, v *Values, _ *argument) []byte { return append(b, f(v)...) }}
}

func address(f func(*Values) netip.AddrPort, port bool) *operator {
	return &operator{text: func(b []byte, v *Values, _ *argument) []byte {
		switch a := f(v); {
		case !a.IsValid():
			return b
		case port:
			return a.AppendTo(b)
		default:
			return a.Addr().AppendTo(b)
		}
	}}
}

// nothing is an operator whose value this proxy never has.
var nothing = &operator{text: func(b []byte, _ *Values, _ *argument) []byte { return b }}

// operators are those that are known, by name.
var operators = map[string]*operator{
	"START_TIME":                                    {text: func(b []byte, v *Values, _ *argument) []byte { return v.Start.UTC().AppendFormat(b, startFormat) }},
	"PROTOCOL":                                      {text: func(b []byte, v *Values, _ *argument) []byte { return append(b, v.Protocol...) }},
	"RESPONSE_CODE":                                 number(func(v *Values) int64 { return int64(v.Status) }),
	"BYTES_RECEIVED":                                number(func(v *Values) int64 { return v.Received }),
	"BYTES_SENT":                                    number(func(v *Values) int64 { return v.Sent }),
	"DURATION":                                      number(func(v *Values) int64 { return v.Duration.Milliseconds() }),
	"REQUEST_HEADERS_BYTES":                         number(func(v *Values) int64 { return v.Heads.Request }),
	"RESPONSE_HEADERS_BYTES":                        number(func(v *Values) int64 { return v.Heads.Response }),
	"RESPONSE_DURATION":                             {kind: isNumber, number: func(v *Values) (int64, bool) { return v.FirstByte.Milliseconds(), v.FirstByte > 0 }},
	"UPSTREAM_REQUEST_ATTEMPT_COUNT":                number(func(v *Values) int64 { return int64(v.Tries) }),
	"GRPC_STATUS_NUMBER":                            {kind: isNumber, number: func(v *Values) (int64, bool) { return int64(v.GRPCStatus), v.GRPC && v.GRPCStatus >= 0 }},
	"RESPONSE_FLAGS":                                {dash: true, text: func(b []byte, v *Values, _ *argument) []byte { return append(b, v.Flags...) }},
	"RESPONSE_CODE_DETAILS":                         text(func(v *Values) string { return v.Details }),
	"UPSTREAM_TRANSPORT_FAILURE_REASON":             text(func(v *Values) string { return v.Failure }),
	"CONNECTION_TERMINATION_DETAILS":                nothing,
	"REQUESTED_SERVER_NAME":                         nothing,
	"UPSTREAM_LOCAL_ADDRESS":                        nothing, // of a tunnel that is shared
	"UPSTREAM_HOST":                                 address(func(v *Values) netip.AddrPort { return v.Upstream }, true),
	"UPSTREAM_REMOTE_ADDRESS":                       address(func(v *Values) netip.AddrPort { return v.Upstream }, true),
	"DOWNSTREAM_LOCAL_ADDRESS":                      address(func(v *Values) netip.AddrPort { return v.Called }, true),
	"DOWNSTREAM_REMOTE_ADDRESS":                     address(func(v *Values) netip.AddrPort { return v.Client }, true),
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS":              address(func(v *Values) netip.AddrPort { return v.Client }, true),
	"DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":         address(func(v *Values) netip.AddrPort { return v.Called }, false),
	"DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":        address(func(v *Values) netip.AddrPort { return v.Client }, false),
	"DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT": address(func(v *Values) netip.AddrPort { return v.Client }, false),
	"UPSTREAM_CLUSTER":                              {text: cluster},
	"UPSTREAM_CLUSTER_RAW":                          {text: cluster},
	"ROUTE_NAME":                                    {foreign: true, spaced: true, text: func(b []byte, v *Values, _ *argument) []byte { return append(b, v.Route...) }},
	"TRACE_ID":                                      {text: func(b []byte, v *Values, _ *argument) []byte { return append(b, v.TraceID...) }},
	"DOWNSTREAM_PEER_URI_SAN":                       text(func(v *Values) string { return v.Source }),
	"UPSTREAM_PEER_URI_SAN":                         text(func(v *Values) string { return v.Dest }),
	"REQ":                                           {foreign: true, compile: compileRequest, text: request},
	"RESP":                                          {compile: compileResponse, text: serviceTime},
	"DYNAMIC_METADATA":                              {foreign: true, compile: compileMetadata, text: metadata},
	"AMBIT":                                         {foreign: true, compile: compileOwn, text: own},
}

const startFormat = "2006-01-02T15:04:05.000Z"

// cluster appends the name that Istio gives a service port at a waypoint.
func cluster(b []byte, v *Values, _ *argument) []byte {
	if v.ClusterHost == "" {
		return b
	}
	b = strconv.AppendUint(append(b, "inbound-vip|"...), uint64(v.ClusterPort), 10)
	b = append(append(append(b, '|'), v.ClusterKind...), '|')
	return append(b, v.ClusterHost...)
}

// request appends a header of the request, or the other one.
func request(b []byte, v *Values, a *argument) []byte {
	at := len(b)
	if b = header(b, v, a.first, a.pseudo[0]); len(b) == at && a.both {
		b = header(b, v, a.second, a.pseudo[1])
	}
	return b
}

func header(b []byte, v *Values, k message.Key, p pseudo) []byte {
	switch p {
	case pseudoMethod:
		return append(b, v.Method...)
	case pseudoPath:
		return append(b, v.Path...)
	case pseudoAuthority:
		return append(b, v.Authority...)
	case pseudoScheme:
		if v.Head == nil {
			return b
		}
		return append(b, "http"...)
	case noPseudo:
	}
	if v.Head == nil {
		return b
	}
	if i := v.Head.Find(k, 0); i >= 0 {
		b = append(b, v.Head.Fields[i].Value...)
	}
	return b
}

// serviceTime appends the time of the endpoint, in milliseconds.
func serviceTime(b []byte, v *Values, _ *argument) []byte {
	if v.FirstByte <= 0 || !v.Answered {
		return b
	}
	return strconv.AppendInt(b, v.FirstByte.Milliseconds(), 10)
}

// ownNames are the arguments of AMBIT(…).
var ownNames = map[string]func(*Values) string{
	"reason": func(v *Values) string { return v.Reason }, "policy": func(v *Values) string { return v.Policy },
	"src.workload": func(v *Values) string { return v.SourceWorkload }, "src.namespace": func(v *Values) string { return v.SourceNamespace },
	"src.identity": func(v *Values) string { return v.Source }, "dst.workload": func(v *Values) string { return v.EndpointWorkload },
	"dst.namespace": func(v *Values) string { return v.EndpointNamespace }, "dst.identity": func(v *Values) string { return v.Dest },
}

func metadata(b []byte, v *Values, a *argument) []byte { return v.Metadata.Append(b, a.path) }

func own(b []byte, v *Values, a *argument) []byte { return append(b, ownNames[a.text](v)...) }

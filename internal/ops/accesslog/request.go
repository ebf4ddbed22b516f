package accesslog

import (
	"net/netip"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
	"github.com/ambit-mesh/ambit/internal/ops/logging"
)

// Request is one request, or one connection that carried no HTTP, at an L7 proxy. Empty
// fields are written as "-", in JSON as null. The byte slices are those of messages.
type Request struct {
	Start    time.Time
	Duration time.Duration
	Reason   reason.Reason
	Err      error

	Method, Path, Authority     []byte
	Protocol                    string // HTTP/1.1
	Status                      int
	Received, Sent              int64
	FirstByte                   time.Duration // 0 without a response
	ForwardedFor, UserAgent, ID []byte
	TraceID                     []byte // 32 hex digits
	Tries                       int

	// Answered: an endpoint sent the response. Direct: a route did.
	Answered, Direct bool

	Upstream       netip.AddrPort // the endpoint
	ClusterKind    string         // http or tcp
	ClusterHost    string         // "" when no service was chosen
	ClusterPort    uint16
	Called, Client netip.AddrPort
	Route          string
	SNI            string // the name that a client of TLS wants
	Policy         string // namespace/name of the policy that decided, if one did

	Src, Dst Party // but for their addresses
}

// Requests writes lines of requests: those of Envoy's default format, with what a mesh
// has beside them at the end. It is safe for concurrent use.
type Requests struct {
	lines *logging.Lines
	json  bool
}

// NewRequests writes to lines, as text or as JSON as the log is.
func NewRequests(lines *logging.Lines) *Requests {
	return &Requests{lines: lines, json: lines.Format() == logging.JSON}
}

// Enabled reports whether lines are written at all.
func (r *Requests) Enabled() bool { return r.lines.Enabled() }

// maxLine is the largest buffer of a line that is kept for reuse, in bytes.
const maxLine = 16 << 10

var lineBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

// Line is a line in another format.
type Line interface {
	// Append appends the line, with its end.
	Append(b []byte) []byte
}

// Write writes the line of a request.
func (r *Requests) Write(e *Request) {
	if r.json {
		r.WriteLine((*jsonLine)(e))
	} else {
		r.WriteLine((*textLine)(e))
	}
}

// The formats of a Request.
type (
	jsonLine Request
	textLine Request
)

func (l *jsonLine) Append(b []byte) []byte { return (*Request)(l).AppendJSON(b) }
func (l *textLine) Append(b []byte) []byte { return (*Request)(l).AppendText(b) }

// WriteLine writes a line in another format.
func (r *Requests) WriteLine(l Line) {
	buf := lineBuffers.Get().(*[]byte)
	b := l.Append((*buf)[:0])
	r.lines.Write(b)
	if cap(b) <= maxLine {
		*buf = b
		lineBuffers.Put(buf)
	}
}

// appendStart appends a time as 2006-01-02T15:04:05.000Z.
func appendStart(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	b = append(digits(b, year, 1000), '-')
	b = append(digits(b, int(month), 10), '-')
	b = append(digits(b, day, 10), 'T')
	b = append(digits(b, hour, 10), ':')
	b = append(digits(b, minute, 10), ':')
	b = append(digits(b, second, 10), '.')
	return append(digits(b, t.Nanosecond()/1e6, 100), 'Z')
}

// digits appends a number from the digit of unit on.
func digits(b []byte, n, unit int) []byte {
	for ; unit > 0; unit /= 10 {
		b = append(b, byte('0'+n/unit%10))
	}
	return b
}

// Flag returns the response flag of Envoy.
func (e *Request) Flag() string { return e.Reason.HTTP().Flag }

// Details returns Envoy's word for where the response came from.
func (e *Request) Details() string {
	switch {
	case e.Reason == reason.MalformedRequest && e.Protocol == "HTTP/2":
		return "http2.protocol_error"
	case e.Reason != reason.OK:
		return Details(e.Reason)
	case e.Answered:
		return "via_upstream"
	case e.Direct:
		return "direct_response"
	}
	return ""
}

// Details returns Envoy's response code details for a reason, "" where it has none.
func Details(r reason.Reason) string {
	switch r {
	case reason.NoRoute:
		return "route_not_found"
	case reason.NoBackend:
		return "cluster_not_found"
	case reason.NoHealthyUpstream, reason.WaypointUnavailable, reason.UnknownGateway, reason.UnsupportedProtocol:
		return "no_healthy_upstream"
	case reason.ConnectFailure, reason.TunnelHandshake, reason.TunnelRefused, reason.TLSFailure, reason.PeerIdentityMismatch,
		reason.TrustDomainMismatch, reason.CertificateRevoked, reason.CertificateUnavailable:
		return "upstream_reset_before_response_started{remote_connection_failure}"
	case reason.ConnectTimeout:
		return "upstream_reset_before_response_started{connection_timeout}"
	case reason.UpstreamReset, reason.TunnelClosed:
		return "upstream_reset_before_response_started{connection_termination}"
	case reason.UpstreamProtocol:
		return "upstream_reset_before_response_started{protocol_error}"
	case reason.ResourceExhausted:
		return "upstream_reset_before_response_started{overflow}"
	case reason.RequestTimeout, reason.TryTimeout:
		return "response_timeout"
	case reason.StreamIdle:
		return "stream_idle_timeout"
	case reason.HeadTimeout:
		return "request_header_timeout"
	case reason.MalformedRequest:
		return "http1.codec_error"
	case reason.DownstreamReset:
		return "downstream_remote_disconnect"
	case reason.PolicyDenied, reason.NotAllowed, reason.PolicyUnavailable, reason.PolicyUnsupported, reason.PolicyChanged:
		return "rbac_access_denied"
	case reason.InvalidToken, reason.TokenAudience:
		return "jwt_authn_access_denied"
	case reason.AuthorizerDenied:
		return "ext_authz_denied"
	case reason.AuthorizerFailed, reason.BodyTooLarge:
		return "ext_authz_error"
	default:
		return ""
	}
}

// AppendText appends the line in Envoy's default text format, and after it the fields
// that Envoy lacks as key=value.
func (e *Request) AppendText(b []byte) []byte {
	b = append(b, '[')
	b = appendStart(b, e.Start)
	b = append(b, `] "`...)
	b = orDash(b, e.Method)
	b = append(b, ' ')
	b = orDash(b, e.Path)
	b = append(b, ' ')
	b = orDash(b, e.Protocol)
	b = append(b, `" `...)
	b = strconv.AppendInt(b, int64(e.Status), 10)
	b = append(append(b, ' '), e.Flag()...)
	b = orDash(append(b, ' '), e.Details())
	b = append(b, " - "...) // termination of the connection
	b = quoted(b, e.Failure())
	b = strconv.AppendInt(append(b, ' '), e.Received, 10)
	b = strconv.AppendInt(append(b, ' '), e.Sent, 10)
	b = strconv.AppendInt(append(b, ' '), e.Duration.Milliseconds(), 10)
	b = append(b, ' ')
	if e.FirstByte > 0 && e.Answered {
		b = strconv.AppendInt(b, e.FirstByte.Milliseconds(), 10)
	} else {
		b = append(b, '-')
	}
	for _, v := range [...][]byte{e.ForwardedFor, e.UserAgent, e.ID, e.Authority} {
		b = quoted(append(b, ' '), v)
	}
	b = append(b, ` "`...)
	b = append(appendAddr(b, e.Upstream), `" `...)
	b = e.cluster(b)
	b = append(b, " - "...) // of the tunnel that was shared
	b = append(appendAddr(b, e.Called), ' ')
	b = orDash(append(appendAddr(b, e.Client), ' '), e.SNI)
	b = quotedIfSpaced(append(b, ' '), e.Route)
	return append(e.more(b, false), '\n')
}

// AppendJSON appends the line as one JSON object with Envoy's keys.
func (e *Request) AppendJSON(b []byte) []byte {
	b = append(b, `{"start_time":"`...)
	b = appendStart(b, e.Start)
	b = append(b, '"')
	b = jsonText(append(b, `,"method":`...), e.Method)
	b = jsonText(append(b, `,"path":`...), e.Path)
	b = jsonText(append(b, `,"protocol":`...), e.Protocol)
	b = strconv.AppendInt(append(b, `,"response_code":`...), int64(e.Status), 10)
	b = jsonText(append(b, `,"response_flags":`...), e.Flag())
	b = jsonText(append(b, `,"response_code_details":`...), e.Details())
	b = append(b, `,"connection_termination_details":null`...)
	b = jsonText(append(b, `,"upstream_transport_failure_reason":`...), e.Failure())
	b = strconv.AppendInt(append(b, `,"bytes_received":`...), e.Received, 10)
	b = strconv.AppendInt(append(b, `,"bytes_sent":`...), e.Sent, 10)
	b = strconv.AppendInt(append(b, `,"duration":`...), e.Duration.Milliseconds(), 10)
	b = append(b, `,"upstream_service_time":`...)
	if e.FirstByte > 0 && e.Answered {
		b = append(strconv.AppendInt(append(b, '"'), e.FirstByte.Milliseconds(), 10), '"')
	} else {
		b = append(b, "null"...)
	}
	b = jsonText(append(b, `,"x_forwarded_for":`...), e.ForwardedFor)
	b = jsonText(append(b, `,"user_agent":`...), e.UserAgent)
	b = jsonText(append(b, `,"request_id":`...), e.ID)
	b = jsonText(append(b, `,"authority":`...), e.Authority)
	b = jsonAddr(append(b, `,"upstream_host":`...), e.Upstream)
	b = append(b, `,"upstream_cluster":`...)
	if e.ClusterHost == "" {
		b = append(b, "null"...)
	} else {
		b = append(e.cluster(append(b, '"')), '"')
	}
	b = append(b, `,"upstream_local_address":null`...)
	b = jsonAddr(append(b, `,"downstream_local_address":`...), e.Called)
	b = jsonAddr(append(b, `,"downstream_remote_address":`...), e.Client)
	b = jsonText(append(b, `,"requested_server_name":`...), e.SNI)
	b = jsonText(append(b, `,"route_name":`...), e.Route)
	return append(e.more(b, true), "}\n"...)
}

// pairs appends keys and values in either format.
type pairs struct {
	b    []byte
	json bool
}

func (p *pairs) key(k string) {
	if p.json {
		p.b = append(append(append(p.b, `,"`...), k...), `":`...)
		return
	}
	p.b = append(append(append(p.b, ' '), k...), '=')
}

// put appends a text unless it is empty.
func put[T []byte | string](p *pairs, k string, v T) {
	switch {
	case len(v) == 0:
	case p.json:
		p.key(k)
		p.b = jsonText(p.b, v)
	default:
		p.key(k)
		p.b = quoted(p.b, v)
	}
}

func (p *pairs) number(k string, n int64) {
	p.key(k)
	p.b = strconv.AppendInt(p.b, n, 10)
}

// more appends what Envoy's format lacks. Empty fields are left out.
func (e *Request) more(b []byte, json bool) []byte {
	p := pairs{b, json}
	if e.Reason != reason.OK {
		put(&p, "reason", e.Reason.String())
	}
	put(&p, "policy", e.Policy)
	if e.Tries > 1 {
		p.number("tries", int64(e.Tries))
	}
	put(&p, "src.workload", e.Src.Workload)
	put(&p, "src.namespace", e.Src.Namespace)
	put(&p, "src.identity", e.Src.Identity)
	put(&p, "dst.workload", e.Dst.Workload)
	put(&p, "dst.namespace", e.Dst.Namespace)
	put(&p, "dst.identity", e.Dst.Identity)
	put(&p, "trace_id", e.TraceID)
	if e.Err != nil {
		put(&p, "error", e.Err.Error())
		put(&p, "hint", e.Reason.Info().Next)
	}
	return p.b
}

// Failure returns why no connection to the endpoint came about.
func (e *Request) Failure() string {
	if f := e.Flag(); f == "UF" && e.Err != nil {
		return e.Err.Error()
	}
	return ""
}

// cluster appends AppendCluster, or a hyphen.
func (e *Request) cluster(b []byte) []byte {
	if e.ClusterHost == "" {
		return append(b, '-')
	}
	return e.AppendCluster(b)
}

// AppendCluster appends the name that Istio gives a service port at a waypoint, nothing
// without a service.
func (e *Request) AppendCluster(b []byte) []byte {
	if e.ClusterHost == "" {
		return b
	}
	b = append(b, "inbound-vip|"...)
	b = strconv.AppendUint(b, uint64(e.ClusterPort), 10)
	b = append(append(append(b, '|'), e.ClusterKind...), '|')
	return append(b, e.ClusterHost...)
}

func appendAddr(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(b, '-')
	}
	return a.AppendTo(b)
}

func jsonAddr(b []byte, a netip.AddrPort) []byte {
	if !a.IsValid() {
		return append(b, "null"...)
	}
	return append(a.AppendTo(append(b, '"')), '"')
}

func orDash[T []byte | string](b []byte, s T) []byte {
	if len(s) == 0 {
		return append(b, '-')
	}
	return escape(b, s)
}

func quoted[T []byte | string](b []byte, s T) []byte { return append(orDash(append(b, '"'), s), '"') }

// quotedIfSpaced quotes what would not be one field.
func quotedIfSpaced(b []byte, s string) []byte {
	for i := range len(s) {
		if s[i] == ' ' {
			return quoted(b, s)
		}
	}
	return orDash(b, s)
}

const hexDigits = "0123456789abcdef"

// escape appends text that others chose so that it cannot end its quotes or its line.
func escape[T []byte | string](b []byte, s T) []byte {
	from := 0 // what is not appended yet
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c <= '~' && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		if c == '"' || c == '\\' {
			b = append(b, '\\', c)
		} else {
			b = append(b, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(b, s[from:]...)
}

// jsonText appends a JSON string, null for an empty one. Bytes that are no UTF-8 are
// replaced.
func jsonText[T []byte | string](b []byte, s T) []byte {
	if len(s) == 0 {
		return append(b, "null"...)
	}
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		case c < utf8.RuneSelf:
			b = append(b, c)
		default:
			r, n := decodeRune(s[i:])
			b = utf8.AppendRune(b, r)
			i += n
			continue
		}
		i++
	}
	return append(b, '"')
}

func decodeRune[T []byte | string](s T) (rune, int) {
	var p [utf8.UTFMax]byte
	return utf8.DecodeRune(p[:copy(p[:], s)])
}

// TraceID returns the trace of a traceparent (W3C Trace Context, 3.2), nil when it is
// none: the line shows only what a search would find.
func TraceID(v []byte) []byte {
	const from, to = len("00-"), len("00-") + 32
	if len(v) < to+1 || v[2] != '-' || v[to] != '-' {
		return nil
	}
	for _, c := range v[from:to] {
		if (c < '0' || '9' < c) && (c < 'a' || 'f' < c) {
			return nil
		}
	}
	return v[from:to]
}

package message

// Name is the number of a well-known field name, so that filters and routes
// compare integers. Other is every name without a number.
type Name uint8

// The well-known names. Their text is in names.
const (
	Other Name = iota
	Accept
	AcceptEncoding
	Authorization
	Baggage
	CacheControl
	Connection
	ContentEncoding
	ContentLength
	ContentRange
	ContentType
	Cookie
	Date
	ETag
	Expect
	Forwarded
	GRPCMessage
	GRPCStatus
	GRPCTimeout
	Host
	HTTP2Settings
	KeepAlive
	Location
	MaxForwards
	Origin
	ProxyAuthenticate
	ProxyAuthorization
	ProxyConnection
	Range
	RetryAfter
	Server
	SetCookie
	TE
	Traceparent
	Tracestate
	TrailerName
	TransferEncoding
	Upgrade
	UserAgent
	Vary
	Via
	XForwardedClientCert
	XForwardedFor
	XForwardedHost
	XForwardedProto
	XRequestID
	nameCount
)

var names = [nameCount]string{
	Accept: "accept", AcceptEncoding: "accept-encoding", Authorization: "authorization", Baggage: "baggage",
	CacheControl: "cache-control", Connection: "connection", ContentEncoding: "content-encoding",
	ContentLength: "content-length", ContentRange: "content-range", ContentType: "content-type", Cookie: "cookie",
	Date: "date", ETag: "etag", Expect: "expect", Forwarded: "forwarded", GRPCMessage: "grpc-message",
	GRPCStatus: "grpc-status", GRPCTimeout: "grpc-timeout", Host: "host", HTTP2Settings: "http2-settings",
	KeepAlive: "keep-alive", Location: "location", MaxForwards: "max-forwards", Origin: "origin",
	ProxyAuthenticate: "proxy-authenticate", ProxyAuthorization: "proxy-authorization",
	ProxyConnection: "proxy-connection", Range: "range", RetryAfter: "retry-after", Server: "server",
	SetCookie: "set-cookie", TE: "te", Traceparent: "traceparent", Tracestate: "tracestate", TrailerName: "trailer",
	TransferEncoding: "transfer-encoding", Upgrade: "upgrade", UserAgent: "user-agent", Vary: "vary", Via: "via",
	XForwardedClientCert: "x-forwarded-client-cert", XForwardedFor: "x-forwarded-for",
	XForwardedHost: "x-forwarded-host", XForwardedProto: "x-forwarded-proto", XRequestID: "x-request-id",
}

// traits of names: what a proxy may do with the field.
const (
	hopByHop    = 1 << iota // ends at the next hop (RFC 9110, 7.6.1)
	protected               // Connection must not name it: a later hop decides by it
	noTrailer               // must not come in trailers: framing, routing, identity
	connOnly                // not permitted in HTTP/2 (RFC 9113, 8.2.2)
	undisguised             // a spelling with underscores is refused
)

var traits = [nameCount]uint8{
	Authorization:        protected | noTrailer,
	Connection:           hopByHop | noTrailer | connOnly | protected,
	ContentEncoding:      protected | noTrailer,
	ContentLength:        protected | noTrailer | undisguised,
	ContentRange:         protected | noTrailer,
	ContentType:          protected | noTrailer,
	Cookie:               protected | noTrailer,
	Expect:               protected | noTrailer,
	Forwarded:            protected | noTrailer | undisguised,
	Host:                 protected | noTrailer | undisguised,
	HTTP2Settings:        hopByHop | noTrailer | connOnly,
	KeepAlive:            hopByHop | noTrailer | connOnly,
	MaxForwards:          protected | noTrailer,
	Origin:               protected | noTrailer,
	ProxyAuthenticate:    noTrailer,
	ProxyAuthorization:   noTrailer,
	ProxyConnection:      hopByHop | noTrailer | connOnly,
	Range:                noTrailer,
	SetCookie:            protected | noTrailer,
	TE:                   hopByHop | noTrailer,
	Traceparent:          protected | noTrailer,
	TrailerName:          noTrailer,
	TransferEncoding:     hopByHop | protected | noTrailer | connOnly | undisguised,
	Upgrade:              hopByHop | noTrailer | connOnly,
	XForwardedClientCert: protected | noTrailer | undisguised,
	XForwardedFor:        protected | noTrailer | undisguised,
	XForwardedHost:       protected | noTrailer | undisguised,
	XForwardedProto:      protected | noTrailer | undisguised,
	XRequestID:           protected | noTrailer,
}

// String returns the name in lower case, "" for Other.
func (n Name) String() string { return names[n] }

// Permitted in trailers: see ErrTrailer.
func (n Name) inTrailer() bool { return traits[n]&noTrailer == 0 }

// byLength holds the names of each length. Few share one, so a look-up
// compares at most a handful of first letters.
var byLength = func() (t [32][]Name) {
	for n := Other + 1; n < nameCount; n++ {
		l := len(names[n])
		t[l] = append(t[l], n)
	}
	return t
}()

// Lookup returns the number of a name in any case.
func Lookup[T []byte | string](name T) Name {
	if len(name) == 0 || len(name) >= len(byLength) {
		return Other
	}
	for _, n := range byLength[len(name)] {
		if s := names[n]; lower[name[0]] == s[0] && EqualFold(name, s) {
			return n
		}
	}
	return Other
}

// EqualFold compares ASCII text without regard to case. Other bytes must be
// equal.
func EqualFold[A, B []byte | string](a A, b B) bool {
	if len(a) != len(b) {
		return false
	}
	for i := 0; i < len(a); i++ {
		if lower[a[i]] != lower[b[i]] {
			return false
		}
	}
	return true
}

// CheckName returns the number of a received field name, or its fault.
func CheckName[T []byte | string](name T) (Name, *Fault) {
	underscore := false
	for i := 0; i < len(name); i++ {
		if class[name[i]]&isToken == 0 {
			if c := name[len(name)-1]; c == ' ' || c == '\t' {
				return Other, ErrNameSpace
			}
			return Other, ErrName
		}
		underscore = underscore || name[i] == '_'
	}
	if len(name) == 0 {
		return Other, ErrName
	}
	if underscore && disguised(name) {
		return Other, ErrNameDisguised
	}
	return Lookup(name), nil
}

// disguised reports whether a program that reads _ as - (CGI, WSGI) would take
// the name for one that decides where a message ends or who sent it.
func disguised[T []byte | string](name T) bool {
	if len(name) >= len(byLength) {
		return false
	}
	var plain [len(byLength)]byte
	for i := 0; i < len(name); i++ {
		plain[i] = name[i]
		if plain[i] == '_' {
			plain[i] = '-'
		}
	}
	return traits[Lookup(plain[:len(name)])]&undisguised != 0
}

// CheckValue returns the fault of a received field value: control characters
// other than a tab. Bytes above 127 are permitted (RFC 9110, 5.5).
func CheckValue[T []byte | string](v T) *Fault {
	for i := 0; i < len(v); i++ {
		if class[v[i]]&isValue == 0 {
			return ErrValue
		}
	}
	return nil
}

// Classes of bytes.
const (
	isToken  = 1 << iota // tchar of RFC 9110, 5.6.2
	isValue              // of field values
	isTarget             // of request targets: visible ASCII
	isHost               // of names and IPv4 addresses
	isUnreserved
)

var class, lower = func() (c, l [256]byte) {
	const symbols = "!#$%&'*+-.^_`|~"
	for i := range 256 {
		b := byte(i)
		l[i] = b
		if 'A' <= b && b <= 'Z' {
			l[i] = b | 0x20
		}
		alnum := '0' <= b && b <= '9' || 'a' <= l[i] && l[i] <= 'z'
		for _, s := range []byte(symbols) {
			if b == s {
				c[i] |= isToken
			}
		}
		if alnum {
			c[i] |= isToken
		}
		if b == '\t' || b >= 0x20 && b != 0x7f {
			c[i] |= isValue
		}
		if b > 0x20 && b < 0x7f {
			c[i] |= isTarget
		}
		if alnum || b == '-' || b == '.' || b == '_' {
			c[i] |= isHost
		}
		if alnum || b == '-' || b == '.' || b == '_' || b == '~' {
			c[i] |= isUnreserved
		}
	}
	return c, l
}()

package message

// Fault is why a message is refused. Each one is a package variable, so that a
// refusal allocates nothing and callers compare pointers.
type Fault struct {
	status int
	text   string
}

// NewFault returns a Fault. status is the answer a client gets for a request
// with this fault. A response with it is answered with 502 whatever status is.
func NewFault(status int, text string) *Fault { return &Fault{status, text} }

// Status returns the HTTP status for the client that sent the request.
func (f *Fault) Status() int { return f.status }

// Error implements error.
func (f *Fault) Error() string { return f.text }

// Why a head is refused, whatever version of HTTP it came by.
var (
	ErrName           = NewFault(400, "field name is no token")
	ErrNameSpace      = NewFault(400, "whitespace between field name and colon")
	ErrNameDisguised  = NewFault(400, "field name with an underscore imitates a protected field")
	ErrValue          = NewFault(400, "field value has a control character")
	ErrMethod         = NewFault(400, "method is no token, or longer than 32 bytes")
	ErrTwoHosts       = NewFault(400, "more than one Host")
	ErrHostDiffers    = NewFault(400, "Host differs from the target's authority")
	ErrNoHost         = NewFault(400, "no Host")
	ErrAuthority      = NewFault(400, "invalid authority")
	ErrTarget         = NewFault(400, "invalid request target")
	ErrScheme         = NewFault(400, "scheme is neither http nor https")
	ErrFragment       = NewFault(400, "request target has a fragment")
	ErrEscape         = NewFault(400, "invalid percent-encoding in the path")
	ErrPathControl    = NewFault(400, "path has an encoded control character")
	ErrPathSlash      = NewFault(400, "path has an encoded slash")
	ErrPathBackslash  = NewFault(400, "path has a backslash")
	ErrPathEmptySeg   = NewFault(400, "path has an empty segment")
	ErrPathDots       = NewFault(400, "path has a dot segment")
	ErrPathDouble     = NewFault(400, "path is percent-encoded twice")
	ErrPathParameter  = NewFault(400, "path has a parameter (;)")
	ErrConnectionName = NewFault(400, "Connection names a field that must arrive")
	ErrConnection     = NewFault(400, "Connection is no list of tokens")
	ErrHopByHop       = NewFault(400, "connection-specific field in HTTP/2")
	ErrPseudo         = NewFault(400, "invalid pseudo-header field")
	ErrPseudoOrder    = NewFault(400, "pseudo-header field after a regular field")
	ErrUpperCase      = NewFault(400, "upper-case field name in HTTP/2")
	ErrTrailer        = NewFault(400, "field is not permitted in trailers")
	ErrTooManyFields  = NewFault(431, "too many fields")
)

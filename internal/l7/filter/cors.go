package filter

import (
	"strconv"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
)

var (
	keyOrigin         = message.NewKey("origin")
	keyVary           = message.NewKey("vary")
	keyRequestMethod  = message.NewKey("access-control-request-method")
	keyRequestHeaders = message.NewKey("access-control-request-headers")
	keyAllowOrigin    = message.NewKey("access-control-allow-origin")
	keyAllowMethods   = message.NewKey("access-control-allow-methods")
	keyAllowHeaders   = message.NewKey("access-control-allow-headers")
	keyAllowCreds     = message.NewKey("access-control-allow-credentials")
	keyExpose         = message.NewKey("access-control-expose-headers")
	keyMaxAge         = message.NewKey("access-control-max-age")
)

// defaultMaxAge is how long an answer to a preflight request may be kept (Fetch,
// 4.9).
const defaultMaxAge = 5 * time.Second

// corsRequest answers preflight requests, also those of origins that are not
// permitted: no backend gets them.
func corsRequest(c *Call) Verdict {
	cors := c.Rule.Rule.Filters.CORS
	if cors == nil {
		return Continue
	}
	i := c.Request.Find(keyOrigin, 0)
	if i < 0 {
		return Continue
	}
	origin := c.Request.Fields[i].Value
	if permits(cors.Origins, origin) {
		c.Origin = origin
	}
	at := c.Request.Find(keyRequestMethod, 0)
	if string(c.Request.Method) != "OPTIONS" || at < 0 {
		return Continue
	}
	c.Reply.Reset()
	c.Reply.Status = 204
	if c.Origin == nil {
		return Answer
	}
	allow(&c.Reply, cors, origin)
	list(&c.Reply, keyAllowMethods, cors.Methods, c.Request.Fields[at].Value)
	if h := c.Request.Find(keyRequestHeaders, 0); h >= 0 {
		list(&c.Reply, keyAllowHeaders, cors.Headers, c.Request.Fields[h].Value)
	}
	age := cors.MaxAge
	if age == 0 {
		age = defaultMaxAge
	}
	c.Reply.Add(keyMaxAge, strconv.AppendInt(nil, int64(age/time.Second), 10))
	return Answer
}

// corsResponse marks the response to a permitted origin.
func corsResponse(c *Call) {
	cors := c.Rule.Rule.Filters.CORS
	if cors == nil || c.Origin == nil {
		return
	}
	allow(c.Response, cors, c.Origin)
	if len(cors.Expose) > 0 {
		list(c.Response, keyExpose, cors.Expose, []byte("*"))
	}
}

// allow names the origin. It is echoed, because a wildcard forbids credentials.
func allow(h *message.Head, cors *route.CORS, origin []byte) {
	h.Set(keyAllowOrigin, origin)
	if i := h.Find(keyVary, 0); i < 0 {
		h.Add(keyVary, []byte("Origin"))
	}
	if cors.Credentials {
		h.Set(keyAllowCreds, []byte("true"))
	}
}

// list adds the values of a list, or what was asked for if the list is a wildcard.
func list(h *message.Head, k message.Key, values []string, asked []byte) {
	switch {
	case len(values) == 0:
	case values[0] == "*":
		h.Set(k, asked)
	default:
		h.Set(k, []byte(strings.Join(values, ", ")))
	}
}

// permits reports whether an origin is in a list of origins. A * stands for one or
// more bytes of the host, also over several labels; alone it is every origin.
func permits(list []string, origin []byte) bool {
	for _, o := range list {
		before, after, wild := strings.Cut(o, "*")
		switch {
		case o == "*":
			return true
		case !wild && message.EqualFold(o, origin):
			return true
		case wild && len(origin) > len(before)+len(after) &&
			message.EqualFold(origin[:len(before)], before) && message.EqualFold(origin[len(origin)-len(after):], after) &&
			hostOnly(origin[len(before):len(origin)-len(after)]):
			return true
		}
	}
	return false
}

// hostOnly reports whether b can be a part of a host: a wildcard must not reach over
// the scheme or the port.
func hostOnly(b []byte) bool {
	for _, c := range b {
		if c == '/' || c == ':' || c == '@' {
			return false
		}
	}
	return true
}

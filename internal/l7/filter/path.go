package filter

import (
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
)

// appendPath appends the path that an edit makes of path, both without queries.
// matched is the condition by which the request took the rule.
func appendPath(dst []byte, e *route.PathEdit, matched route.Path, path []byte) []byte {
	if !e.Prefix {
		return append(dst, e.Value...)
	}
	rest := path
	if matched.Kind == route.Segments {
		rest = path[min(len(path), len(strings.TrimSuffix(matched.Value, "/"))):]
	}
	start := len(dst)
	dst = append(append(dst, strings.TrimSuffix(e.Value, "/")...), rest...)
	if len(dst) == start {
		dst = append(dst, '/')
	}
	return dst
}

func appendQuery(dst []byte, h *message.Head) []byte {
	return append(dst, h.Path[len(h.PathOnly()):]...)
}

// rewrite changes path and authority.
func rewrite(c *Call) Verdict {
	r := c.Rule.Rule.Filters.Rewrite
	if r == nil {
		return Continue
	}
	if r.Path != nil && len(c.Request.Path) > 0 {
		var buf [256]byte
		p := appendPath(buf[:0], r.Path, c.Rule.Match.Path, c.Request.PathOnly())
		c.Request.SetPath(appendQuery(p, c.Request))
	}
	if r.Host != "" {
		c.Request.SetAuthority([]byte(r.Host))
	}
	return Continue
}

// redirect answers with another address.
func redirect(c *Call) Verdict {
	r := c.Rule.Rule.Filters.Redirect
	if r == nil {
		return Continue
	}
	scheme := r.Scheme
	if scheme == "" {
		scheme = "http"
		if c.TLS {
			scheme = "https"
		}
	}
	var buf [512]byte
	b := append(append(buf[:0], scheme...), "://"...)
	if r.Host != "" {
		b = append(b, r.Host...)
	} else {
		b = append(b, message.HostOf(c.Request.Authority)...)
	}
	port := r.Port
	if port == 0 && r.Scheme == "" {
		port = c.Port
	}
	if port != 0 && port != defaultPort(scheme) {
		b = strconv.AppendUint(append(b, ':'), uint64(port), 10)
	}
	if r.Path != nil {
		b = appendPath(b, r.Path, c.Rule.Match.Path, c.Request.PathOnly())
	} else {
		b = append(b, c.Request.PathOnly()...)
	}
	b = appendQuery(b, c.Request)
	c.Reply.Reset()
	if c.Reply.Status = r.Status; r.Status == 0 {
		c.Reply.Status = 302
	}
	c.Reply.Add(location, b)
	return Answer
}

var location = message.NewKey("location")

func defaultPort(scheme string) uint16 {
	if scheme == "https" {
		return 443
	}
	return 80
}

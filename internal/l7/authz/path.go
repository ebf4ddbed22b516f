package authz

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
)

// reading is a path as it is forwarded, and as the program that decodes most would
// read it. Both are the same for most paths.
type reading struct {
	sent, canonical []byte
	// others are further canonical forms: with backslashes that divide nothing, and after
	// parameters were removed earlier, so that a slash in them is gone. Most paths have none.
	others [][]byte
	// unclear is set when the path is encoded too often for all of them to be known.
	unclear bool
}

// maxDepth is how often a path with parameters or backslashes may be encoded. Programs decode once, some
// twice.
const maxDepth = 4

// readPath returns all readings of the path of the request.
func (a *Access) readPath() *reading {
	if !a.pathKnown {
		sent := a.head.PathOnly()
		a.path, a.pathKnown = reading{sent: sent, canonical: sent}, true
		if !plain(sent) {
			a.canonical = appendUnescaped(a.canonical[:0], sent)
			if bytes.ContainsAny(a.canonical, `;\`) {
				a.path.others, a.path.unclear = otherForms(sent)
			}
			divide(a.canonical)
			a.canonical = a.canonical[:simplify(a.canonical, 0, len(a.canonical))]
			a.path.canonical = a.canonical
		}
	}
	return &a.path
}

// plain reports whether a path is its own canonical form.
func plain(p []byte) bool {
	if len(p) == 0 || p[0] != '/' {
		return true // of CONNECT and OPTIONS *
	}
	for i, c := range p {
		switch c {
		case '%', ';', '\\':
			return false
		case '/', '.':
			if i > 0 && p[i-1] == '/' {
				return false
			}
		}
	}
	return true
}

// appendForms appends the canonical forms of a path to forms: decoded until nothing is left
// to decode, without parameters, empty segments and dot segments; with slashes for
// backslashes, and if there are any, with backslashes as they are.
func appendForms(forms [][]byte, p []byte) [][]byte {
	form := appendUnescaped(nil, p)
	if bytes.IndexByte(form, '\\') >= 0 {
		plain := bytes.Clone(form)
		forms = append(forms, plain[:simplify(plain, 0, len(plain))])
		divide(form)
	}
	return append(forms, form[:simplify(form, 0, len(form))])
}

// otherForms returns the canonical forms of a path whose parameters are removed last, and
// before it is decoded, and after it was decoded once, twice and so on; each with and without
// backslashes as slashes. unclear reports that there are more than maxDepth levels.
func otherForms(p []byte) (forms [][]byte, unclear bool) {
	p = bytes.Clone(p)
	forms = appendForms(forms, p)
	for depth := 0; ; depth++ {
		if depth > maxDepth {
			return forms, true
		}
		for _, separators := range []string{"/", `/\`} {
			if q, had := cutParameters(p, separators); had {
				forms = appendForms(forms, q)
			}
		}
		var escaped bool
		if p, escaped = unescapeOnce(p); !escaped {
			return forms, false
		}
	}
}

// cutParameters returns p without what follows a semicolon in each segment.
func cutParameters(p []byte, separators string) (out []byte, had bool) {
	in := false // a parameter
	for _, c := range p {
		if strings.IndexByte(separators, c) >= 0 {
			in = false
		} else if c == ';' {
			in, had = true, true
		}
		if !in {
			out = append(out, c)
		}
	}
	return out, had
}

// unescapeOnce decodes the escapes of p in place, but not what they make. It reports whether
// there were any.
func unescapeOnce(p []byte) (out []byte, escaped bool) {
	out = p[:0]
	for i := 0; i < len(p); i++ {
		c := p[i]
		if c == '%' {
			if d, ok := message.Unescape(p[i:]); ok {
				c, escaped = d, true
				i += 2
			}
		}
		out = append(out, c)
	}
	return out, escaped
}

// appendDecoded appends p decoded, with slashes for backslashes.
func appendDecoded(dst, p []byte) []byte {
	start := len(dst)
	dst = appendUnescaped(dst, p)
	divide(dst[start:])
	return dst
}

// divide makes backslashes slashes.
func divide(p []byte) {
	for i := range p {
		if p[i] == '\\' {
			p[i] = '/'
		}
	}
}

// appendUnescaped decodes until no escape is left. An escape can be made of what others
// decode to, so each byte that is appended may complete one.
func appendUnescaped(dst, p []byte) []byte {
	start := len(dst)
	for _, c := range p {
		dst = append(dst, c)
		for len(dst)-start >= 3 {
			c, ok := message.Unescape(dst[len(dst)-3:])
			if !ok || dst[len(dst)-3] != '%' {
				break
			}
			dst = append(dst[:len(dst)-3], c)
		}
	}
	return dst
}

// simplify removes parameters, empty segments and dot segments from p[from:to], which
// begins with a slash, in place. What follows is moved up. It returns the new length.
func simplify(p []byte, from, to int) int {
	n := from
	slash := false // the last segment is empty or a dot segment: its slash stays
	for i := from; i < to; {
		next := i + 1
		for next < to && p[next] != '/' {
			next++
		}
		segment := p[i+1 : next]
		for j, c := range segment {
			if c == ';' {
				segment = segment[:j]
				break
			}
		}
		slash = true
		switch string(segment) {
		case "", ".":
		case "..":
			for n > from {
				if n--; p[n] == '/' {
					break
				}
			}
		default:
			p[n] = '/'
			n += 1 + copy(p[n+1:], segment)
			slash = false
		}
		i = next
	}
	if slash {
		p[n] = '/'
		n++
	}
	return n + copy(p[n:], p[to:])
}

// paths are alternatives. any: they refuse, so that one reading of a path is enough.
type paths struct {
	list []path
	any  bool
}

func (t paths) match(r *reading) bool {
	for i := range t.list {
		if t.list[i].match(r, t.any) {
			return true
		}
	}
	return false
}

// path is a condition on a path: as it is written, for the path as it was sent, and in
// canonical form.
type path struct{ sent, canonical pattern }

func (c *path) match(r *reading, refuses bool) bool {
	if refuses {
		return r.unclear || c.sent.match(r.sent, true) || c.refuses(r.canonical) || slices.ContainsFunc(r.others, c.refuses)
	}
	return !r.unclear && c.sent.match(r.sent, false) && c.canonical.match(r.canonical, false) &&
		!slices.ContainsFunc(r.others, func(p []byte) bool { return !c.canonical.match(p, false) })
}

// refuses reports whether a canonical form fits, with or without a slash at its end: many
// programs take /a/ for /a.
func (c *path) refuses(p []byte) bool {
	if c.canonical.match(p, true) {
		return true
	}
	n := len(p) - 1
	return n > 0 && p[n] == '/' && c.canonical.match(p[:n], true)
}

// pattern is a text, or a template if it has segments.
type pattern struct {
	text     rbac.Text
	segments []string // before {**}; "" is {*}
	template bool
	rest     bool // {**} follows
	tail     string
}

func (t *pattern) match(p []byte, refuses bool) bool {
	switch {
	case t.template:
		return t.segmentsMatch(p, refuses)
	case t.text.Kind == rbac.Presence:
		return refuses || len(p) > 0
	}
	return t.text.MatchesBytes(p)
}

// segmentsMatch matches a template. {**} is whatever is between the slash before it and
// what follows it. Where pages say that no segment and no slash is enough, or that
// a slash at the end is not, lists that refuse follow them as well.
func (t *pattern) segmentsMatch(p []byte, refuses bool) bool {
	for _, s := range t.segments {
		if len(p) == 0 || p[0] != '/' {
			return false
		}
		end := 1
		for end < len(p) && p[end] != '/' {
			end++
		}
		if s == "" && end == 1 || s != "" && string(p[1:end]) != s {
			return false
		}
		p = p[end:]
	}
	if !t.rest {
		return string(p) == t.tail
	}
	if refuses && string(p) == t.tail {
		return true
	}
	if len(p) == 0 || p[0] != '/' {
		return false
	}
	p = p[1:]
	if len(p) >= len(t.tail) && string(p[len(p)-len(t.tail):]) == t.tail {
		return true
	}
	return refuses && t.tail == "/" && strings.Contains(string(p), "/")
}

// one and rest are the operators of templates.
const (
	one  = "{*}"
	rest = "{**}"
)

// IsTemplate reports whether a path of a policy has operators.
func IsTemplate(s string) bool { return strings.Contains(s, one) || strings.Contains(s, rest) }

// CheckTemplate returns why a template is invalid.
func CheckTemplate(s string) error {
	_, err := compileTemplatePath(s)
	return err
}

var errTemplate = errors.New("{*} and {**} stand for whole segments between slashes, without any other of * { } in the path")

func compileTemplate(s string) (pattern, error) {
	t := pattern{template: true}
	if !strings.HasPrefix(s, "/") {
		return t, fmt.Errorf("%q: a template begins with a slash", s)
	}
	segments := strings.Split(s[1:], "/")
	for i, seg := range segments {
		switch {
		case seg == rest && t.rest, seg == one && t.rest:
			return t, fmt.Errorf("%q: {**} is not the last operator", s)
		case seg == rest:
			t.rest = true
		case seg != one && strings.ContainsAny(seg, "*{}"):
			return t, fmt.Errorf("%q: %w", s, errTemplate)
		case t.rest:
			t.tail += "/" + seg
		case seg == one:
			t.segments = append(t.segments, "")
		case seg == "" && i < len(segments)-1:
			return t, fmt.Errorf("%q: an empty segment", s)
		case seg == "":
			t.tail = "/" // at the end
		default:
			t.segments = append(t.segments, seg)
		}
	}
	return t, nil
}

// compilePath makes a path of a policy a condition.
func compilePath(t rbac.Text) path {
	c := path{sent: pattern{text: t}, canonical: pattern{text: t}}
	v := &c.canonical.text.Value
	if t.Kind == rbac.Presence {
		return c
	}
	b := appendDecoded(nil, []byte(*v))
	switch t.Kind { //nolint:exhaustive // Presence has no value
	case rbac.Exact:
		if len(b) > 0 && b[0] == '/' {
			b = b[:simplify(b, 0, len(b))]
		}
	case rbac.Prefix: // the last segment goes on
		if last := strings.LastIndexByte(string(b), '/'); last > 0 && b[0] == '/' {
			b = b[:simplify(b, 0, last+1)]
		}
		b, _ = cut(b, strings.LastIndexByte(string(b), '/')+1)
	case rbac.Suffix: // something is before the first segment
		first := strings.IndexByte(string(b), '/')
		if first < 0 {
			first = len(b)
		}
		if open, was := cut(b[:first:first], 0); was {
			b = append(open, b[first:]...)
			first = len(open)
		}
		if first < len(b) {
			b = b[:simplify(b, first, len(b))]
		}
	}
	*v = string(b)
	return c
}

// cut removes the parameters of a segment, which begins at from and is the last.
func cut(b []byte, from int) ([]byte, bool) {
	if i := strings.IndexByte(string(b[from:]), ';'); i >= 0 {
		return b[:from+i], true
	}
	return b, false
}

// compileTemplatePath makes a template a condition.
func compileTemplatePath(s string) (path, error) {
	sent, err := compileTemplate(s)
	if err != nil {
		return path{}, err
	}
	segments := strings.Split(s, "/")
	for i, seg := range segments {
		if seg == one || seg == rest {
			continue
		}
		d := string(appendDecoded(nil, []byte(seg)))
		if strings.ContainsAny(d, "/;") || d == "." || d == ".." || strings.ContainsAny(d, "*{}") {
			return path{}, fmt.Errorf("%q: no path has the segment %q after its normalisation", s, seg)
		}
		segments[i] = d
	}
	canonical, err := compileTemplate(strings.Join(segments, "/"))
	return path{sent, canonical}, err
}

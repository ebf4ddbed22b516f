package route

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// condition is a compiled Match.
type condition struct {
	source  Match // without the parts that never count
	path    *regexp.Regexp
	headers []value
	query   []value
}

// value is a compiled Value.
type value struct {
	key    message.Key
	host   bool
	source Value
	regex  *regexp.Regexp
}

func compileMatches(r *Rule) ([]condition, error) {
	matches := r.Matches
	if len(matches) == 0 {
		matches = []Match{{}}
	}
	out := make([]condition, 0, len(matches))
	for _, m := range matches {
		c, err := compileMatch(m)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func compileMatch(m Match) (c condition, err error) {
	switch p := m.Path; p.Kind {
	case Any:
		m.Path.Value = ""
	case Exact, Segments:
		if !strings.HasPrefix(p.Value, "/") {
			return c, fmt.Errorf("path %q does not start with a slash", p.Value)
		}
	case Regex:
		if c.path, err = whole(p.Value); err != nil {
			return c, err
		}
	default:
		return c, fmt.Errorf("path %q has no known kind of match", p.Value)
	}
	if m.Headers, c.headers, err = compileValues(m.Headers, strings.ToLower); err != nil {
		return c, err
	}
	if m.Query, c.query, err = compileValues(m.Query, func(s string) string { return s }); err != nil {
		return c, err
	}
	c.source = m
	return c, nil
}

// compileValues drops all but the first condition of a name: the others do not
// count (Gateway API).
func compileValues(in []Value, fold func(string) string) (kept []Value, out []value, err error) {
	seen := map[string]bool{}
	for _, v := range in {
		if v.Name == "" {
			return nil, nil, errors.New("condition without a name")
		}
		if seen[fold(v.Name)] {
			continue
		}
		seen[fold(v.Name)] = true
		c := value{key: message.NewKey(v.Name), host: strings.EqualFold(v.Name, "host"), source: v}
		switch v.Kind {
		case Regex:
			if c.regex, err = whole(v.Value); err != nil {
				return nil, nil, err
			}
		case Exact, Prefix, Present:
		default:
			return nil, nil, fmt.Errorf("condition on %q has no known kind of match", v.Name)
		}
		kept, out = append(kept, v), append(out, c)
	}
	return kept, out, nil
}

// whole compiles an expression that must fit the whole value.
func whole(expr string) (*regexp.Regexp, error) {
	if _, err := regexp.Compile(expr); err != nil { // first as written: a lone ")" must not close our group
		return nil, err
	}
	return regexp.Compile(`^(?s:` + expr + `)$`)
}

// fits reports whether all but an exact path or a prefix fit: those were
// looked up.
func (c *condition) fits(h *message.Head) bool { return c.misfit(h) == "" }

// misfit names the first part that does not fit, "" if all fit.
func (c *condition) misfit(h *message.Head) string {
	if c.source.Method != "" && string(h.Method) != c.source.Method {
		return "method"
	}
	for i := range c.headers {
		if v := &c.headers[i]; v.fitsHeader(h) == v.source.Not {
			return "headers"
		}
	}
	if len(c.query) > 0 {
		q := h.Query()
		for i := range c.query {
			if v := &c.query[i]; v.fitsQuery(q) == v.source.Not {
				return "query"
			}
		}
	}
	if c.path != nil && !c.path.Match(h.PathOnly()) {
		return "path"
	}
	return ""
}

func (v *value) fits(b []byte) bool {
	switch v.source.Kind {
	case Exact:
		return string(b) == v.source.Value
	case Prefix:
		return len(b) >= len(v.source.Value) && string(b[:len(v.source.Value)]) == v.source.Value
	case Regex:
		return v.regex.Match(b)
	case Any, Present:
		return true
	case Segments: // of paths
	}
	return false
}

// fitsHeader compares the values of all fields of the name, joined by commas
// as RFC 9110, 5.3 has it.
func (v *value) fitsHeader(h *message.Head) bool {
	if v.host {
		return len(h.Authority) > 0 && v.fits(h.Authority)
	}
	first := h.Find(v.key, 0)
	if first < 0 {
		return false
	}
	next := h.Find(v.key, first+1)
	if next < 0 {
		return v.fits(h.Fields[first].Value)
	}
	joined := bytes.Clone(h.Fields[first].Value) // several fields of one name are rare
	for ; next >= 0; next = h.Find(v.key, next+1) {
		joined = append(append(joined, ','), h.Fields[next].Value...)
	}
	return v.fits(joined)
}

// fitsQuery compares the first parameter of the name.
func (v *value) fitsQuery(query []byte) bool {
	var buf [256]byte
	for len(query) > 0 {
		pair, rest, _ := bytes.Cut(query, []byte("&"))
		query = rest
		name, val, _ := bytes.Cut(pair, []byte("="))
		if string(decode(buf[:0], name)) == v.source.Name {
			return v.fits(decode(buf[:0], val))
		}
	}
	return false
}

// decode returns a query component without its encoding. What is no valid
// escape stays.
func decode(buf, b []byte) []byte {
	if bytes.IndexByte(b, '%') < 0 && bytes.IndexByte(b, '+') < 0 {
		return b
	}
	for i := 0; i < len(b); i++ {
		switch c := b[i]; c {
		case '+':
			buf = append(buf, ' ')
		case '%':
			if d, ok := message.Unescape(b[i:]); ok {
				c, i = d, i+2
			}
			buf = append(buf, c)
		default:
			buf = append(buf, c)
		}
	}
	return buf
}

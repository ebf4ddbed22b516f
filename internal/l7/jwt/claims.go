package jwt

import (
	"encoding/base64"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4/json"

	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
)

// Claims are those of a token that was verified. They are immutable.
type Claims struct {
	Issuer, Subject string
	Principal       string // issuer/subject

	values      map[string]any
	words       map[string][]string // of claims that are lists of words
	from, until int64               // seconds since 1970, until is the first that does not count
}

// Valid reports whether the token is valid at a moment.
func (c *Claims) Valid(now time.Time) bool { return c.from <= now.Unix() && now.Unix() < c.until }

// split splits claims that are lists of words.
func (c *Claims) split(names []string) {
	for _, name := range slices.Concat([]string{"scope", "permission"}, names) {
		s, ok := c.values[name].(string)
		if !ok {
			continue
		}
		if c.words == nil {
			c.words = map[string][]string{}
		}
		c.words[name] = strings.Fields(s)
	}
}

func (c *Claims) at(path []string) (any, bool) {
	var v any = c.values
	for _, name := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = m[name]; !ok {
			return nil, false
		}
	}
	return v, len(path) > 0
}

// Match reports whether the claim at a path has one of the values. Of a list, each
// member is a value. Loosely, numbers and truth values are compared as texts as well,
// a claim that is an object is present, and a list of words is also one text.
func (c *Claims) Match(path []string, values []rbac.Text, loose bool) bool {
	v, there := c.at(path)
	if !there {
		return false
	}
	if len(path) == 1 {
		if words, is := c.words[path[0]]; is {
			for _, w := range words {
				if anyOf(values, w) {
					return true
				}
			}
			return loose && matches(v, values, true)
		}
	}
	return matches(v, values, loose)
}

func matches(v any, values []rbac.Text, loose bool) bool {
	switch v := v.(type) {
	case string:
		if anyOf(values, v) {
			return true
		}
	case []any:
		for _, e := range v {
			if s, ok := e.(string); ok && anyOf(values, s) || !ok && loose && matches(e, values, true) {
				return true
			}
		}
	case json.Number:
		if loose && anyOf(values, string(v)) {
			return true
		}
	case bool:
		if loose && anyOf(values, truth(v)) {
			return true
		}
	}
	return loose && slices.ContainsFunc(values, func(t rbac.Text) bool { return t.Kind == rbac.Presence })
}

func truth(v bool) string {
	if v {
		return "true"
	}
	return "false"
}

func anyOf(values []rbac.Text, s string) bool {
	for _, t := range values {
		if t.Matches(s) {
			return true
		}
	}
	return false
}

// Text returns a claim as a header has it: lists and objects as JSON in base64. It is
// false when there is none.
func (c *Claims) Text(path []string) (string, bool) {
	v, there := c.at(path)
	if !there || v == nil {
		return "", false
	}
	switch v := v.(type) {
	case string:
		return v, true
	case json.Number:
		return string(v), true
	case bool:
		return truth(v), true
	}
	b, err := json.Marshal(v)
	return base64.StdEncoding.EncodeToString(b), err == nil
}

// JSON returns all claims as an object.
func (c *Claims) JSON() ([]byte, error) { return json.Marshal(c.values) }

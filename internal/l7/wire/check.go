package wire

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
)

// Bounds of a rule. A Gateway API object is within them, but for attempts,
// which that API does not bound.
const (
	maxParents  = 4096 // 32 parents, each a ServiceEntry with many hosts and ports
	maxMatches  = 128
	maxBackends = 128
	maxEdits    = 64
	maxNames    = 1024
	maxOrigins  = 64
	MaxAttempts = 100
)

// Check returns why a gateway cannot execute a rule: a field, its value and the
// cause.
func (r *Rule) Check() error {
	switch {
	case r.Origin.Kind == "" || r.Origin.Namespace == "" || r.Origin.Name == "" || r.Origin.Rule < 0:
		return fmt.Errorf("origin: %q does not name a rule", r.Origin)
	case r.Origin.Created != r.Origin.Created.Truncate(time.Second):
		return fmt.Errorf("origin.created: %v has a fraction of a second", r.Origin.Created)
	case len(r.Parents) == 0 || len(r.Parents) > maxParents:
		return fmt.Errorf("parents: %d, not 1 to %d", len(r.Parents), maxParents)
	case len(r.Rule.Matches) > maxMatches:
		return fmt.Errorf("matches: %d, at most %d", len(r.Rule.Matches), maxMatches)
	case len(r.Rule.Backends) > maxBackends:
		return fmt.Errorf("backends: %d, at most %d", len(r.Rule.Backends), maxBackends)
	case len(r.Rule.Hosts) > 0 && r.Rule.Carries != route.TLS:
		return fmt.Errorf("hosts: %q have no meaning for a parent that is a service", r.Rule.Hosts)
	case len(r.Rule.Hosts) > maxNames:
		return fmt.Errorf("connections.names: %d, at most %d", len(r.Rule.Hosts), maxNames)
	}
	for i, p := range r.Parents {
		if err := checkKey(p.Port); err != nil {
			return fmt.Errorf("parents[%d]: %w", i, err)
		}
	}
	if r.Rule.Carries != route.Requests {
		return r.checkConnections()
	}
	if r.Dropped != "" {
		if r.Rule.Matches != nil || r.Rule.Backends != nil || !empty(&r.Rule.Filters) || r.Rule.Retry != nil || r.Rule.Session != nil || r.Rule.Timeouts != (route.Timeouts{}) {
			return fmt.Errorf("dropped: %q, and the rule has contents", r.Dropped)
		}
		return nil
	}
	return r.checkContents()
}

// checkConnections looks at a rule for connections.
func (r *Rule) checkConnections() error {
	c := &r.Rule
	if c.Matches != nil || !empty(&c.Filters) || c.Retry != nil || c.Session != nil || c.Timeouts != (route.Timeouts{}) || c.GRPC {
		return errors.New("connections: the rule has parts of a rule for requests, too")
	}
	if r.Dropped != "" {
		if c.Backends != nil || c.Hosts != nil {
			return fmt.Errorf("dropped: %q, and the rule has contents", r.Dropped)
		}
		return nil
	}
	for i, n := range c.Hosts {
		if n != strings.ToLower(n) || n == "*" || checkHost(strings.TrimPrefix(n, "*.")) != nil || strings.TrimPrefix(n, "*.") == "" {
			return fmt.Errorf("connections.names[%d]: %q is neither a host name in lower case nor one behind a wildcard", i, n)
		}
	}
	for i := range c.Backends {
		b := &c.Backends[i]
		if err := checkBackend(b); err != nil {
			return fmt.Errorf("backends[%d].%w", i, err)
		}
		if !empty(&b.Filters) {
			return fmt.Errorf("backends[%d].filters: connections have none", i)
		}
	}
	return nil
}

func (r *Rule) checkContents() error {
	c := &r.Rule
	for i := range c.Matches {
		if err := checkMatch(&c.Matches[i]); err != nil {
			return fmt.Errorf("matches[%d]: %w", i, err)
		}
	}
	if err := checkFilters(&c.Filters, c.Matches); err != nil {
		return fmt.Errorf("filters.%w", err)
	}
	if c.Filters.Redirect != nil && (len(c.Backends) > 0 || c.Filters.Rewrite != nil) {
		return errors.New("filters.redirect: the rule has backends or a rewrite, too")
	}
	for i := range c.Backends {
		b := &c.Backends[i]
		if err := checkBackend(b); err != nil {
			return fmt.Errorf("backends[%d].%w", i, err)
		}
		if f := b.Filters; f.Redirect != nil || f.Rewrite != nil || len(f.Mirrors) > 0 || f.CORS != nil || f.ExternalAuth != nil {
			return fmt.Errorf("backends[%d].filters: only request and response are of a backend", i)
		}
	}
	for _, t := range [...]time.Duration{c.Timeouts.Request, c.Timeouts.Try} {
		if err := checkDuration(t); err != nil {
			return fmt.Errorf("timeouts: %w", err)
		}
	}
	if c.Session != nil {
		if err := CheckSession(c.Session); err != nil {
			return fmt.Errorf("session.%w", err)
		}
	}
	return checkRetry(c.Retry)
}

// maxSessionName is Gateway API's.
const maxSessionName = 128

// CheckSession returns why a gateway cannot keep sessions in that way.
func CheckSession(s *route.Session) error {
	if s.Name == "" || len(s.Name) > maxSessionName || !message.Token([]byte(s.Name)) {
		return fmt.Errorf("name: %q is no token of up to %d bytes", s.Name, maxSessionName)
	}
	if s.Header {
		if err := CheckEdit(s.Name); err != nil {
			return fmt.Errorf("name: %w", err)
		}
		if lower := strings.ToLower(s.Name); strings.HasPrefix(lower, "x-ambit-") || strings.HasPrefix(lower, "x-envoy-") || lower == "set-cookie" || lower == "cookie" {
			return fmt.Errorf("name: %q is removed from requests, or has another meaning", s.Name)
		}
	}
	if err := checkDuration(s.Absolute); err != nil {
		return fmt.Errorf("absolute_ms: %w", err)
	}
	if s.Permanent && (s.Header || s.Absolute < time.Second || s.Absolute%time.Second != 0) {
		return errors.New("permanent: only a cookie is, for a number of whole seconds (set absoluteTimeout)")
	}
	return nil
}

// empty reports whether there are no filters.
func empty(f *route.Filters) bool {
	return f.Request == nil && f.Response == nil && f.Redirect == nil && f.Rewrite == nil && len(f.Mirrors) == 0 && f.CORS == nil && f.ExternalAuth == nil
}

// checkKey returns why a key names no port of a service.
func checkKey(k route.PortKey) error {
	if k.Namespace == "" || strings.ContainsAny(k.Namespace, "/:") {
		return fmt.Errorf("service.namespace: %q is no name", k.Namespace)
	}
	name := strings.TrimPrefix(k.Hostname, "*.") // of a ServiceEntry
	if name == "" || strings.ContainsAny(name, "/:*") || name != strings.ToLower(name) {
		return fmt.Errorf("service.hostname: %q is no name in lower case", k.Hostname)
	}
	if k.Port == 0 {
		return errors.New("port: 0 is no port")
	}
	return nil
}

// checkMatch has the table's compiler look at a match.
func checkMatch(m *route.Match) error {
	if m.Method != "" && !message.Token([]byte(m.Method)) {
		return fmt.Errorf("method: %q is no token", m.Method)
	}
	for i, v := range m.Headers {
		if err := fieldName(v.Name); err != nil {
			return fmt.Errorf("headers[%d].name: %w", i, err)
		}
	}
	for _, v := range slices.Concat(m.Headers, m.Query) {
		if v.Not || v.Kind != route.Exact && v.Kind != route.Regex {
			return fmt.Errorf("headers or query: the kind of match of %q is not known", v.Name)
		}
	}
	if m.Path.Kind == route.Any && m.Path.Value != "" {
		return fmt.Errorf("path: %q has no kind of match", m.Path.Value)
	}
	if _, problems := route.Compile([]route.Rule{{Matches: []route.Match{*m}}}, route.BySpecificity); len(problems) > 0 {
		return errors.Unwrap(problems[0].Err) // without the origin, which it does not have here
	}
	return nil
}

// fieldName returns why a name is not that of a field.
func fieldName(name string) error {
	if _, fault := message.CheckName(name); fault != nil {
		return fmt.Errorf("%q: %w", name, fault)
	}
	return nil
}

func checkFilters(f *route.Filters, matches []route.Match) error {
	if err := checkEdit(f.Request); err != nil {
		return fmt.Errorf("request.%w", err)
	}
	if err := checkEdit(f.Response); err != nil {
		return fmt.Errorf("response.%w", err)
	}
	if r := f.Redirect; r != nil {
		if err := checkRedirect(r, matches); err != nil {
			return fmt.Errorf("redirect.%w", err)
		}
	}
	if r := f.Rewrite; r != nil {
		if err := checkHost(r.Host); err != nil {
			return fmt.Errorf("rewrite.hostname: %w", err)
		}
		if err := checkPathEdit(r.Path, matches); err != nil {
			return fmt.Errorf("rewrite.path: %w", err)
		}
	}
	if len(f.Mirrors) > maxEdits {
		return fmt.Errorf("mirrors: %d, at most %d", len(f.Mirrors), maxEdits)
	}
	for i := range f.Mirrors {
		m := &f.Mirrors[i]
		if m.Denominator == 0 || m.Numerator > m.Denominator {
			return fmt.Errorf("mirrors[%d]: %d of %d is no share", i, m.Numerator, m.Denominator)
		}
		if m.Backend.Invalid != "" || m.Backend.Weight != 0 || !empty(&m.Backend.Filters) {
			return fmt.Errorf("mirrors[%d].backend: is invalid, or has a weight or filters", i)
		}
		if err := checkBackend(&m.Backend); err != nil {
			return fmt.Errorf("mirrors[%d].backend.%w", i, err)
		}
	}
	if f.CORS != nil {
		if err := checkCORS(f.CORS); err != nil {
			return fmt.Errorf("cors.%w", err)
		}
	}
	return nil
}

// Fields that a route does not edit: they frame messages or end at a hop, name
// the virtual host, or carry the identity that the gateway has proven.
var notEdited = []message.Name{
	message.Connection, message.ContentLength, message.TransferEncoding, message.TE, message.TrailerName, message.Upgrade,
	message.KeepAlive, message.ProxyConnection, message.HTTP2Settings, message.Host, message.XForwardedClientCert,
}

// CheckEdit returns why a route cannot edit a field.
func CheckEdit(name string) error {
	n, fault := message.CheckName(name)
	switch {
	case fault != nil:
		return fmt.Errorf("%q: %w", name, fault)
	case n == message.Host:
		return fmt.Errorf("%q cannot be edited (use URLRewrite)", name)
	case slices.Contains(notEdited, n):
		return fmt.Errorf("%q cannot be edited: the gateway sets it", name)
	}
	return nil
}

func checkEdit(e *route.HeaderEdit) error {
	if e == nil {
		return nil
	}
	if n := len(e.Set) + len(e.Add) + len(e.Remove); n > maxEdits {
		return fmt.Errorf("set, add, remove: %d, at most %d", n, maxEdits)
	}
	for _, l := range [...]struct {
		name string
		list []route.Field
	}{{"set", e.Set}, {"add", e.Add}} {
		for i, f := range l.list {
			if err := CheckEdit(f.Name); err != nil {
				return fmt.Errorf("%s[%d].name: %w", l.name, i, err)
			}
			if fault := message.CheckValue(f.Value); fault != nil {
				return fmt.Errorf("%s[%d].value: %q: %w", l.name, i, f.Value, fault)
			}
		}
	}
	for i, name := range e.Remove {
		if err := CheckEdit(name); err != nil {
			return fmt.Errorf("remove[%d]: %w", i, err)
		}
	}
	return nil
}

var redirects = []int{0, http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect}

func checkRedirect(r *route.Redirect, matches []route.Match) error {
	if r.Scheme != "" && r.Scheme != "http" && r.Scheme != "https" {
		return fmt.Errorf("scheme: %q is neither http nor https", r.Scheme)
	}
	if !slices.Contains(redirects, r.Status) {
		return fmt.Errorf("status: %d is none of 301, 302, 303, 307 and 308", r.Status)
	}
	if err := checkHost(r.Host); err != nil {
		return fmt.Errorf("hostname: %w", err)
	}
	if err := checkPathEdit(r.Path, matches); err != nil {
		return fmt.Errorf("path: %w", err)
	}
	return nil
}

// checkHost takes a name without a port, or an empty one.
func checkHost(host string) error {
	if host == "" {
		return nil
	}
	if fault := message.CheckAuthority(host); fault != nil || strings.ContainsAny(host, ":*") {
		return fmt.Errorf("%q is no host name", host)
	}
	return nil
}

func checkPathEdit(e *route.PathEdit, matches []route.Match) error {
	if e == nil {
		return nil
	}
	if e.Prefix && (len(matches) == 0 || slices.ContainsFunc(matches, func(m route.Match) bool { return m.Path.Kind != route.Segments })) {
		return fmt.Errorf("prefix: %q: a match of the rule has no path of kind PATH_PREFIX", e.Value)
	}
	if e.Prefix && e.Value == "" {
		return nil
	}
	if !strings.HasPrefix(e.Value, "/") {
		return fmt.Errorf("%q does not start with a slash", e.Value)
	}
	for _, c := range []byte(e.Value) {
		if c <= ' ' || c >= 0x7f || c == '?' || c == '#' {
			return fmt.Errorf("%q: %q is no character of a path (percent-encode it)", e.Value, c)
		}
	}
	return nil
}

func checkBackend(b *route.Backend) error {
	if b.Name != "" || b.Invalid == "" {
		k, err := ParseUpstream(b.Name)
		if err != nil {
			return err
		}
		if err := checkKey(k); err != nil {
			return err
		}
	}
	return checkFilters(&b.Filters, nil)
}

func checkCORS(c *route.CORS) error {
	if n := len(c.Origins); n > maxOrigins {
		return fmt.Errorf("origins: %d, at most %d", n, maxOrigins)
	}
	for i, o := range c.Origins {
		if o == "*" && len(c.Origins) == 1 {
			continue
		}
		scheme, host, ok := strings.Cut(o, "://")
		host = strings.TrimPrefix(host, "*.")
		if !ok || !message.Token([]byte(scheme)) || message.CheckAuthority(host) != nil || strings.Contains(host, "*") {
			return fmt.Errorf("origins[%d]: %q is not scheme://host, and not * alone", i, o)
		}
	}
	for _, l := range [...]struct {
		name string
		list []string
	}{{"methods", c.Methods}, {"headers", c.Headers}, {"expose", c.Expose}} {
		if len(l.list) > maxOrigins {
			return fmt.Errorf("%s: %d, at most %d", l.name, len(l.list), maxOrigins)
		}
		for i, v := range l.list {
			if v == "*" && len(l.list) > 1 || !message.Token([]byte(v)) {
				return fmt.Errorf("%s[%d]: %q is no token, and not * alone", l.name, i, v)
			}
		}
	}
	if s := c.MaxAge / time.Second; c.MaxAge < 0 || c.MaxAge%time.Second != 0 || s > 1<<32-1 {
		return fmt.Errorf("max_age_seconds: %v is no whole number of seconds", c.MaxAge)
	}
	return nil
}

func checkDuration(d time.Duration) error {
	if d < 0 || d%time.Millisecond != 0 || d.Milliseconds() > maxMillis {
		return fmt.Errorf("%v is no whole number of milliseconds up to %d", d, int64(maxMillis))
	}
	return nil
}

func checkRetry(r *route.Retry) error {
	if r == nil {
		return nil
	}
	if r.Attempts < 0 || r.Attempts > MaxAttempts {
		return fmt.Errorf("retry.attempts: %d, at most %d", r.Attempts, MaxAttempts)
	}
	if len(r.Codes) > maxBackends {
		return fmt.Errorf("retry.codes: %d, at most %d", len(r.Codes), maxBackends)
	}
	for i, c := range r.Codes {
		if c < 400 || c > 599 {
			return fmt.Errorf("retry.codes[%d]: %d is not 400 to 599", i, c)
		}
	}
	if err := checkDuration(r.Backoff); err != nil {
		return fmt.Errorf("retry.backoff_ms: %w", err)
	}
	return nil
}

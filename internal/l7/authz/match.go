package authz

import (
	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/mesh/rbac"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// Policy is a compiled policy. It is immutable.
type Policy struct {
	key        string // namespace/name
	action     action
	dryRun     bool
	everything bool
	services   []Service
	rules      []rule
	provider   *extauthz.Provider // of a CUSTOM policy
}

type action uint8

const (
	allow action = iota
	deny
	audit
	custom
)

// rule holds when all of its clauses do, a clause when one of its matches does.
type rule struct {
	clauses []clause
	refusal *reason.Error // of a DENY; of a CUSTOM policy, that of a connection without HTTP
	place   int           // in the policy as it was written
}

type clause []match

// match holds when every condition does.
type match struct {
	deny                    bool // of a policy that refuses: what cannot be seen holds
	connection              []rbac.Condition
	domains, notDomains     []rbac.Text
	hosts, notHosts         texts
	methods, notMethods     texts
	paths, notPaths         paths
	headers                 []header
	principals              principals
	notPrincipals           principals
	claims                  []claim
	metadata                []claim // of answers of external authorizers
	servers, notServers     []rbac.Text
	aboutHTTP, aboutServers bool
}

// texts are alternatives. any: they refuse, so that one reading of a request is enough.
type texts struct {
	list []rbac.Text
	any  bool
}

type header struct {
	name       string // in lower case
	id         message.Name
	some, none texts
}

// matches returns the first rule that holds, or nil.
func (p *Policy) matches(a *Access) *rule {
	for i := range p.rules {
		if p.rules[i].holds(a) {
			return &p.rules[i]
		}
	}
	return nil
}

func (r *rule) holds(a *Access) bool {
	for _, c := range r.clauses {
		if !c.holds(a) {
			return false
		}
	}
	return true
}

func (c clause) holds(a *Access) bool {
	for i := range c {
		if c[i].holds(a) {
			return true
		}
	}
	return false
}

func (m *match) holds(a *Access) bool {
	for i := range m.connection {
		c := &m.connection[i]
		if c.LooksAtDestination() && !a.conn.Dst.Addr().IsValid() {
			if m.deny {
				continue
			}
			return false
		}
		if !c.Holds(&a.view) {
			return false
		}
	}
	if !inTexts(m.domains, m.notDomains, a.conn.Identity.TrustDomain) {
		return false
	}
	if m.aboutServers && !m.serverHolds(a.head) {
		return false
	}
	if !m.aboutHTTP {
		return true
	}
	if a.head == nil {
		return m.deny
	}
	return m.requestHolds(a)
}

// serverHolds decides about the server name of TLS. A request in plain HTTP has none,
// and that of other connections is not read.
func (m *match) serverHolds(h *message.Head) bool {
	if h == nil {
		return m.deny
	}
	return inTexts(m.servers, m.notServers, "")
}

func inTexts(some, none []rbac.Text, s string) bool {
	return (len(some) == 0 || anyText(some, s)) && !anyText(none, s)
}

func anyText(list []rbac.Text, s string) bool {
	for _, t := range list {
		if t.Matches(s) {
			return true
		}
	}
	return false
}

func (m *match) requestHolds(a *Access) bool {
	h := a.head
	if len(m.methods.list) > 0 && !m.methods.method(h.Method) || m.notMethods.method(h.Method) {
		return false
	}
	if len(m.hosts.list) > 0 && !m.hosts.host(h.Authority) || m.notHosts.host(h.Authority) {
		return false
	}
	if len(m.paths.list)+len(m.notPaths.list) > 0 {
		r := a.readPath()
		if len(m.paths.list) > 0 && !m.paths.match(r) || m.notPaths.match(r) {
			return false
		}
	}
	for i := range m.headers {
		if !m.headers[i].holds(a) {
			return false
		}
	}
	return m.tokenHolds(a.tokens) && m.metadataHolds(a.metadata)
}

// method compares a method. Methods have a case (RFC 9110, 9.1), but programs exist
// that do not look at it.
func (t texts) method(m []byte) bool {
	for _, c := range t.list {
		if c.MatchesBytes(m) || t.any && fits(c, m, true) {
			return true
		}
	}
	return false
}

// host compares an authority without regard to case: as it was sent, and, in lists
// that refuse, also without its port and without the dot at the end of a name.
func (t texts) host(authority []byte) bool {
	if len(t.list) == 0 {
		return false
	}
	bare := message.HostOf(authority)
	undotted := bare
	if n := len(bare); n > 1 && bare[n-1] == '.' {
		undotted = bare[:n-1]
	}
	for _, c := range t.list {
		if fits(c, authority, t.any) || t.any && (fits(c, bare, true) || fits(c, undotted, true)) {
			return true
		}
	}
	return false
}

// fits compares without regard to case. With every, a condition of presence takes an
// empty text as well.
func fits(c rbac.Text, b []byte, every bool) bool {
	switch n := len(c.Value); c.Kind {
	case rbac.Exact:
		return message.EqualFold(b, c.Value)
	case rbac.Prefix:
		return len(b) >= n && message.EqualFold(b[:n], c.Value)
	case rbac.Suffix:
		return len(b) >= n && message.EqualFold(b[len(b)-n:], c.Value)
	case rbac.Presence:
		return every || len(b) > 0
	}
	return false
}

func (x *header) holds(a *Access) bool {
	return (len(x.some.list) == 0 || x.value(a, x.some)) && (len(x.none.list) == 0 || !x.value(a, x.none))
}

// value compares the value of the header: all lines of its name, joined by commas. A
// list that refuses also compares each line and each part of it; one that allows
// demands that each line fit. Both look at lines whose name resembles this one.
func (x *header) value(a *Access, t texts) bool {
	if x.id == message.Host {
		return t.host(a.head.Authority)
	}
	if t.any {
		// A line whose name only resembles this one must not hide what the others are together.
		return x.lines(a, t, false) || x.lines(a, t, true)
	}
	// Nor may a program read such a line in place of the one that is allowed.
	return x.lines(a, t, false) && x.lines(a, t, true)
}

// lines compares the lines of the name, loosely also those of names that resemble it.
func (x *header) lines(a *Access, t texts, loose bool) bool {
	h := a.head
	comma, part := ",", byte(',')
	if x.id == message.Cookie { // RFC 6265, 5.4; HTTP/2 sends it in parts (RFC 9113, 8.2.3)
		comma, part = "; ", ';'
	}
	lines := 0
	var first []byte
	for i := range h.Fields {
		f := &h.Fields[i]
		if !x.named(f, loose) {
			continue
		}
		if t.any && anyPart(t.list, f.Value, part) {
			return true
		}
		if !t.any && !anyBytes(t.list, f.Value) {
			return false
		}
		switch lines++; lines {
		case 1:
			first = f.Value
		case 2:
			a.joined = append(append(append(a.joined[:0], first...), comma...), f.Value...)
		default:
			a.joined = append(append(a.joined, comma...), f.Value...)
		}
	}
	switch lines {
	case 0:
		return false
	case 1:
		return !t.any || anyBytes(t.list, first)
	}
	return anyBytes(t.list, a.joined)
}

func (x *header) named(f *message.Field, loose bool) bool {
	if f.ID == x.id && (x.id != message.Other || message.EqualFold(f.Name, x.name)) {
		return true
	}
	return loose && len(f.Name) == len(x.name) && sameDashed(f.Name, x.name)
}

// sameDashed compares names as programs do that make environment variables of them.
func sameDashed(name []byte, want string) bool {
	for i, c := range name {
		w := want[i]
		switch {
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		case c == '_':
			c = '-'
		}
		if w == '_' {
			w = '-'
		}
		if c != w {
			return false
		}
	}
	return true
}

func anyBytes(list []rbac.Text, b []byte) bool {
	for _, t := range list {
		if t.MatchesBytes(b) {
			return true
		}
	}
	return false
}

// anyPart compares a whole line, and what is between its commas. The presence of a
// header is that of its name.
func anyPart(list []rbac.Text, line []byte, comma byte) bool {
	for _, t := range list {
		if t.Kind == rbac.Presence || t.MatchesBytes(line) {
			return true
		}
	}
	for start, i := 0, 0; i <= len(line); i++ {
		if i < len(line) && line[i] != comma {
			continue
		}
		if anyBytes(list, trim(line[start:i])) {
			return true
		}
		start = i + 1
	}
	return false
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

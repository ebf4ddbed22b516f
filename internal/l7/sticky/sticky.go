// Package sticky keeps the requests of a session on one endpoint. A session is a value that
// the client gets in a cookie or a header, and sends again. The value names the endpoint
// by a hash: it shows no address, and means something only among the endpoints that the
// backend has now. Nothing is stored, so that every replica of a gateway reads it, after any
// restart.
//
// The value is not a proof. A client that makes one up chooses among the endpoints that any
// request may get.
package sticky

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strconv"
	"time"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/l7/route"
	"github.com/ambit-mesh/ambit/internal/mesh/workload"
)

// ID names an endpoint of a backend of a rule.
type ID [12]byte

// IDOf returns the name of an endpoint. Other rules and backends have other names for it.
func IDOf(rule, backend, uid string) (id ID) {
	h := sha256.New()
	for _, part := range [...]string{"ambit session", rule, backend, uid} {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(part)))
		_, _ = h.Write(n[:]) // never fails
		_, _ = h.Write([]byte(part))
	}
	copy(id[:], h.Sum(nil))
	return id
}

// Value is a session as it travels: the endpoint, and when the session began.
type Value struct {
	Began uint32 // in Unix seconds
	ID    ID
}

// Length of a value as text: 4 bytes of time and 12 of the name, in base64.
const Length = 22

// AppendTo renders the value.
func (v Value) AppendTo(dst []byte) []byte {
	var raw [16]byte
	binary.BigEndian.PutUint32(raw[:], v.Began)
	copy(raw[4:], v.ID[:])
	return base64.RawURLEncoding.AppendEncode(dst, raw[:])
}

// Parse reads what AppendTo renders, and nothing else.
func Parse(text []byte) (v Value, ok bool) {
	var raw [18]byte
	if len(text) != Length {
		return v, false
	}
	n, err := base64.RawURLEncoding.Strict().Decode(raw[:], text)
	if err != nil || n != 16 {
		return v, false
	}
	v.Began = binary.BigEndian.Uint32(raw[:])
	copy(v.ID[:], raw[4:])
	return v, true
}

// skew is how far the clocks of two replicas may differ.
const skew = time.Minute

// lasts reports whether a session goes on.
func lasts(s *route.Session, v Value, now time.Time) bool {
	age := now.Sub(time.Unix(int64(v.Began), 0))
	return age >= -skew && (s.Absolute == 0 || age < s.Absolute)
}

// find returns the first value in a request that could be of a session.
func find(s *route.Session, h *message.Head) (v Value, ok bool) {
	if s.Header {
		k := message.NewKey(s.Name)
		for i := h.Find(k, 0); i >= 0; i = h.Find(k, i+1) {
			if v, ok = Parse(h.Fields[i].Value); ok {
				return v, true
			}
		}
		return v, false
	}
	for i := h.Index(message.Cookie, 0); i >= 0; i = h.Index(message.Cookie, i+1) {
		for rest := h.Fields[i].Value; len(rest) > 0; {
			var pair []byte
			pair, rest, _ = bytes.Cut(rest, semicolon)
			name, value, _ := bytes.Cut(bytes.TrimLeft(pair, " "), equals)
			if string(name) != s.Name {
				continue
			}
			if v, ok = Parse(bytes.TrimRight(value, " ")); ok {
				return v, true
			}
		}
	}
	return v, false
}

var semicolon, equals = []byte(";"), []byte("=")

// maxTables bounds the backends whose endpoints are remembered by name.
const maxTables = 256

// Table finds endpoints by their names. It belongs to one loop.
type Table struct {
	of  map[*route.Backend]*names
	buf []byte
}

// names are the endpoints of one backend, of one directory.
type names struct {
	snapshot *workload.Snapshot
	uids     map[ID]string
	ids      map[string]ID
}

// NewTable returns an empty table.
func NewTable() *Table { return &Table{of: map[*route.Backend]*names{}} }

// names returns those of a backend; fresh has those of the current directory.
func (t *Table) names(rule *route.Rule, b *route.Backend, svc *workload.Service, d *workload.Snapshot, fresh bool) *names {
	n := t.of[b]
	if n != nil && (!fresh || n.snapshot == d) {
		return n
	}
	old := n
	n = &names{snapshot: d, uids: map[ID]string{}, ids: map[string]ID{}}
	for w := range d.Endpoints(svc) {
		id, known := ID{}, false
		if old != nil {
			id, known = old.ids[w.UID]
		}
		if !known {
			id = IDOf(rule.Route, b.Name, w.UID)
		}
		n.uids[id], n.ids[w.UID] = w.UID, id
	}
	if old == nil && len(t.of) >= maxTables {
		clear(t.of)
	}
	t.of[b] = n
	return n
}

// Held is the session of a request.
type Held struct {
	Backend *route.Backend
	UID     string // of the endpoint
	value   Value
}

// Find returns the session that a request is in; without a backend when it is in none. Its
// endpoint is one that a backend of the rule has now, and the backend gets requests.
func (t *Table) Find(cfg *route.Config, rule *route.Rule, h *message.Head, d *workload.Snapshot, now time.Time) Held {
	v, ok := find(rule.Session, h)
	if !ok || !lasts(rule.Session, v, now) {
		return Held{}
	}
	for i := range rule.Backends {
		b := &rule.Backends[i]
		svc := serviceOf(cfg, b, d)
		if svc == nil || b.Weight == 0 || b.Invalid != "" {
			continue
		}
		uid, known := t.names(rule, b, svc, d, false).uids[v.ID]
		if !known {
			uid, known = t.names(rule, b, svc, d, true).uids[v.ID]
		}
		if w := d.WorkloadByUID(uid); known && w != nil && w.ServesAs(svc.Key()) != nil {
			return Held{b, uid, v}
		}
	}
	return Held{}
}

func serviceOf(cfg *route.Config, b *route.Backend, d *workload.Snapshot) *workload.Service {
	if cfg == nil || cfg.Upstreams[b.Name] == nil {
		return nil
	}
	k := &cfg.Upstreams[b.Name].Service
	return d.ServiceByName(k.Namespace, k.Hostname)
}

var keySetCookie = message.NewKey("set-cookie")

// Answer has the client of a response learn its session. uid is the endpoint that has
// answered, target the rule and the match that the request took. A session that goes on is
// repeated in a header, and not in a cookie.
func (t *Table) Answer(cfg *route.Config, target *route.Target, b *route.Backend, uid string, held Held, h *message.Head, d *workload.Snapshot, now time.Time) {
	s := target.Rule.Session
	goesOn := held.Backend == b && held.UID == uid && uid != ""
	if goesOn && !s.Header {
		return
	}
	v := held.value
	if !goesOn {
		svc := serviceOf(cfg, b, d)
		if svc == nil {
			return
		}
		id, known := t.names(target.Rule, b, svc, d, false).ids[uid]
		if !known {
			if id, known = t.names(target.Rule, b, svc, d, true).ids[uid]; !known {
				return // another waypoint has chosen the endpoint
			}
		}
		v = Value{uint32(now.Unix()), id}
	}
	if s.Header {
		t.buf = v.AppendTo(t.buf[:0])
		h.Set(message.NewKey(s.Name), t.buf)
		return
	}
	t.buf = v.AppendTo(append(append(t.buf[:0], s.Name...), '='))
	t.buf = append(append(t.buf, "; Path="...), cookiePath(target)...)
	t.buf = append(t.buf, "; HttpOnly"...)
	if s.Permanent {
		t.buf = strconv.AppendInt(append(t.buf, "; Max-Age="...), int64(s.Absolute/time.Second), 10)
	}
	h.Add(keySetCookie, t.buf)
}

// cookiePath returns the paths for which a client sends the cookie: those of the match, so
// that rules of one name do not disturb each other.
func cookiePath(t *route.Target) string {
	p := &t.Match.Path
	if (p.Kind == route.Segments || p.Kind == route.Exact) && len(t.Rule.Matches) == 1 && cookieSafe(p.Value) {
		return p.Value
	}
	return "/"
}

// cookieSafe reports whether a path can stand in a cookie.
func cookieSafe(p string) bool {
	for i := range len(p) {
		if c := p[i]; c <= ' ' || c >= 0x7f || c == ';' || c == ',' {
			return false
		}
	}
	return p != ""
}

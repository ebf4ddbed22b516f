package message

// Elements calls f for each element of a comma-separated list until f returns
// false. Elements are trimmed; empty ones are skipped.
func Elements(list []byte, f func([]byte) bool) {
	for len(list) > 0 {
		end := 0
		for end < len(list) && list[end] != ',' {
			end++
		}
		if e := Trim(list[:end]); len(e) > 0 && !f(e) {
			return
		}
		list = list[min(end+1, len(list)):]
	}
}

// Trim removes spaces and tabs from both ends.
func Trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// CheckConnection returns the fault of Connection fields: an element that is no
// token, or one that names a field a later hop decides by. A sender could
// otherwise make a proxy delete that field.
func (h *Head) CheckConnection() (f *Fault) {
	for i := h.Index(Connection, 0); i >= 0 && f == nil; i = h.Index(Connection, i+1) {
		Elements(h.Fields[i].Value, func(e []byte) bool {
			id, bad := CheckName(e)
			switch {
			case bad != nil:
				f = ErrConnection
			case traits[id]&protected != 0:
				f = ErrConnectionName
			}
			return f == nil
		})
	}
	return f
}

// HasConnection reports whether Connection has this element.
func (h *Head) HasConnection(element string) (has bool) {
	for i := h.Index(Connection, 0); i >= 0 && !has; i = h.Index(Connection, i+1) {
		Elements(h.Fields[i].Value, func(e []byte) bool {
			has = EqualFold(e, element)
			return !has
		})
	}
	return has
}

// RemoveHopByHop removes what ends at this hop (RFC 9110, 7.6.1): the fields
// that Connection names, Connection itself, and the others that concern one
// connection. `TE: trailers` stays, for gRPC demands it from end to end.
func (h *Head) RemoveHopByHop() {
	trailers := h.hasTE()
	for i := h.Index(Connection, 0); i >= 0; i = h.Index(Connection, i+1) {
		Elements(h.Fields[i].Value, func(e []byte) bool {
			h.mark(e)
			return true
		})
	}
	h.filter(0, func(f *Field) bool { return f.ID != dropped && traits[f.ID]&hopByHop == 0 })
	if trailers {
		h.Fields = append(h.Fields, Field{Name: teName, Value: teTrailers, ID: TE})
	}
}

// dropped marks a field for removal, during RemoveHopByHop only.
const dropped = nameCount

var teName, teTrailers = []byte("te"), []byte("trailers")

// mark marks the fields that Connection names, but for protected ones.
func (h *Head) mark(name []byte) {
	for i := range h.Fields {
		f := &h.Fields[i]
		if f.ID != dropped && f.ID != Connection && traits[f.ID]&protected == 0 && EqualFold(f.Name, name) {
			f.ID = dropped
		}
	}
}

// hasTE reports whether the sender accepts trailers.
func (h *Head) hasTE() (has bool) {
	for i := h.Index(TE, 0); i >= 0 && !has; i = h.Index(TE, i+1) {
		Elements(h.Fields[i].Value, func(e []byte) bool {
			has = EqualFold(e, teTrailers)
			return !has
		})
	}
	return has
}

// AddHTTP2 takes one field of an HTTP/2 request, response or trailer section
// in order. Pseudo fields go to their parts of the head. It refuses what
// HTTP/1 could not carry unchanged (RFC 9113, 8.2).
func (h *Head) AddHTTP2(name, value string) *Fault {
	h.Version = HTTP2
	if len(name) > 0 && name[0] == ':' {
		return h.addPseudo(name, value)
	}
	id, f := CheckName(name)
	if f != nil {
		return f
	}
	for i := 0; i < len(name); i++ {
		if 'A' <= name[i] && name[i] <= 'Z' {
			return ErrUpperCase
		}
	}
	if f := CheckValue(value); f != nil {
		return f
	}
	if n := len(value); n > 0 && (value[0] == ' ' || value[0] == '\t' || value[n-1] == ' ' || value[n-1] == '\t') {
		return ErrValue
	}
	if traits[id]&connOnly != 0 || id == TE && !EqualFold(value, "trailers") {
		return ErrHopByHop
	}
	if id == Host {
		return h.addHost(value)
	}
	h.Fields = append(h.Fields, Field{Name: h.ownString(name), Value: h.ownString(value), ID: id})
	return nil
}

// addHost takes a Host beside or instead of :authority.
func (h *Head) addHost(value string) *Fault {
	if f := CheckAuthority(value); f != nil {
		return f
	}
	if h.Authority != nil && !EqualFold(h.Authority, value) {
		return ErrHostDiffers
	}
	if h.Authority == nil {
		h.Authority = h.ownString(value)
	}
	return nil
}

func (h *Head) addPseudo(name, value string) *Fault {
	if len(h.Fields) > 0 {
		return ErrPseudoOrder
	}
	var part *[]byte
	switch name {
	case ":method":
		part = &h.Method
	case ":scheme":
		part = &h.Scheme
	case ":authority":
		part = &h.Authority
	case ":path":
		part = &h.Path
	case ":protocol":
		part = &h.Protocol
	case ":status":
		return h.setStatus(value)
	default:
		return ErrPseudo
	}
	if *part != nil || len(value) == 0 {
		return ErrPseudo
	}
	*part = h.ownString(value)
	return nil
}

func (h *Head) setStatus(value string) *Fault {
	if h.Status != 0 || len(value) != 3 {
		return ErrPseudo
	}
	for i := 0; i < 3; i++ {
		if value[i] < '0' || value[i] > '9' {
			return ErrPseudo
		}
		h.Status = h.Status*10 + int(value[i]-'0')
	}
	if h.Status < 100 || h.Status > 599 {
		return ErrPseudo
	}
	return nil
}

// CheckRequest returns the fault of a request's parts after all fields of an
// HTTP/2 request were added, or after edits: what has a line of HTTP/1 of its
// own must not be able to hold two.
func (h *Head) CheckRequest() *Fault {
	if !Method(h.Method) {
		return ErrMethod
	}
	connect := string(h.Method) == "CONNECT" && len(h.Protocol) == 0
	if len(h.Authority) == 0 {
		if h.Version != HTTP10 {
			return ErrNoHost
		}
	} else if f := CheckAuthority(h.Authority); f != nil {
		return f
	}
	if len(h.Scheme) > 0 && !EqualFold(h.Scheme, "http") && !EqualFold(h.Scheme, "https") {
		return ErrScheme
	}
	if connect {
		if len(h.Path) > 0 || len(h.Scheme) > 0 && h.Version == HTTP2 {
			return ErrTarget
		}
		return nil
	}
	return checkPath(h)
}

func checkPath(h *Head) *Fault {
	if string(h.Path) == "*" && string(h.Method) == "OPTIONS" {
		return nil
	}
	if len(h.Path) == 0 || h.Path[0] != '/' {
		return ErrTarget
	}
	for _, b := range h.Path {
		if class[b]&isTarget == 0 {
			return ErrTarget
		}
		if b == '#' {
			return ErrFragment
		}
	}
	return checkEscapes(h.PathOnly())
}

// Token reports whether b is a token (RFC 9110, 5.6.2).
func Token(b []byte) bool {
	for _, c := range b {
		if class[c]&isToken == 0 {
			return false
		}
	}
	return len(b) > 0
}

// MaxMethod bounds a method, in bytes, in both versions of HTTP: what one refuses, the
// other must not pass on. The longest that is registered has 17.
const MaxMethod = 32

// Method reports whether b can be the method of a request.
func Method(b []byte) bool { return len(b) <= MaxMethod && Token(b) }

// JoinCookies makes one field of several Cookie fields: HTTP/2 permits to
// split a cookie (RFC 9113, 8.2.3), HTTP/1 does not.
func (h *Head) JoinCookies() {
	first := h.Index(Cookie, 0)
	if first < 0 || h.Index(Cookie, first+1) < 0 {
		return
	}
	n := 0
	for i := first; i >= 0; i = h.Index(Cookie, i+1) {
		n += len(h.Fields[i].Value) + 2
	}
	at := h.room(n)
	for i := first; i >= 0; i = h.Index(Cookie, i+1) {
		if i > first {
			h.arena = append(h.arena, "; "...)
		}
		h.arena = append(h.arena, h.Fields[i].Value...)
		h.Fields[first].Private = h.Fields[first].Private || h.Fields[i].Private
	}
	h.Fields[first].Value = h.arena[at:len(h.arena):len(h.arena)]
	h.filter(first+1, func(f *Field) bool { return f.ID != Cookie })
}

// LowerNames makes all field names lower case, as HTTP/2 demands. The names
// that were so already stay where they are.
func (h *Head) LowerNames() {
	for i := range h.Fields {
		f := &h.Fields[i]
		if f.ID != Other {
			f.Name = lowerNames[f.ID]
			continue
		}
		for j, c := range f.Name {
			if lower[c] == c {
				continue
			}
			own := h.own(f.Name)
			for k := j; k < len(own); k++ {
				own[k] = lower[own[k]]
			}
			f.Name = own
			break
		}
	}
}

var lowerNames = func() (t [nameCount][]byte) {
	for n, s := range names {
		t[n] = []byte(s)
	}
	return t
}()

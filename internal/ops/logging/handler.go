package logging

import (
	"context"
	"encoding"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// timeFormat has microseconds: connections of one program are often closer
// together than a millisecond.
const timeFormat = "2006-01-02T15:04:05.000000Z07:00"

// maxPooled is the largest line buffer kept for reuse, in bytes.
const maxPooled = 16 << 10

var lines = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

type handler struct {
	out    *output
	scope  string
	level  *level
	prefix string // of groups, each followed by a dot
	attrs  []byte // rendered by WithAttrs
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	c := *h
	c.prefix += name + "."
	return &c
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = append([]byte(nil), h.attrs...)
	for _, a := range attrs {
		c.attrs = c.out.format.appendAttr(c.attrs, c.prefix, a)
	}
	return &c
}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	buf := lines.Get().(*[]byte)
	b := (*buf)[:0]
	f := h.out.format
	if f == JSON {
		b = append(b, `{"level":"`...)
		b = append(b, LevelName(r.Level)...)
		b = append(b, `","time":"`...)
		b = r.Time.UTC().AppendFormat(b, timeFormat)
		b = append(b, `","scope":`...)
		b = appendJSON(b, h.scope)
		b = append(b, `,"message":`...)
		b = appendJSON(b, r.Message)
	} else {
		b = r.Time.UTC().AppendFormat(b, timeFormat)
		b = append(b, '\t')
		b = append(b, LevelName(r.Level)...)
		b = append(b, '\t')
		b = append(b, h.scope...)
		b = append(b, '\t')
		b = appendBare(b, r.Message)
		b = append(b, '\t')
	}
	b = append(b, h.attrs...)
	r.Attrs(func(a slog.Attr) bool {
		b = f.appendAttr(b, h.prefix, a)
		return true
	})
	if f == JSON {
		b = append(b, '}')
	} else if b[len(b)-1] == ' ' || b[len(b)-1] == '\t' {
		b = b[:len(b)-1]
	}
	b = append(b, '\n')
	h.out.mu.Lock()
	_, err := h.out.w.Write(b)
	h.out.mu.Unlock()
	if cap(b) <= maxPooled {
		*buf = b
		lines.Put(buf)
	}
	return err
}

// appendAttr writes one attribute: ',"key":value' or 'key=value '.
func (f Format) appendAttr(b []byte, prefix string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, g := range v.Group() {
			b = f.appendAttr(b, prefix, g)
		}
		return b
	}
	if a.Key == "" {
		return b
	}
	if f == JSON {
		b = append(b, ',')
		b = appendJSON(b, prefix+a.Key)
		b = append(b, ':')
		return appendJSONValue(b, v)
	}
	b = append(b, prefix...)
	b = append(b, a.Key...)
	b = append(b, '=')
	return append(appendPlainValue(b, v), ' ')
}

// appendPlainValue quotes strings and errors, so that a line can be split at
// spaces, and writes numbers and addresses bare.
func appendPlainValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindString:
		return appendQuoted(b, v.String())
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(b, v.Uint64(), 10)
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool())
	case slog.KindFloat64:
		return strconv.AppendFloat(b, v.Float64(), 'g', -1, 64)
	case slog.KindDuration:
		return append(b, v.Duration().String()...)
	case slog.KindTime:
		return v.Time().UTC().AppendFormat(b, timeFormat)
	case slog.KindAny, slog.KindGroup, slog.KindLogValuer: // by their Go type
	}
	switch x := v.Any().(type) {
	case error:
		return appendQuoted(b, x.Error())
	case encoding.TextMarshaler:
		if t, err := x.MarshalText(); err == nil {
			return appendBare(b, string(t))
		}
	case fmt.Stringer:
		return appendQuoted(b, x.String())
	}
	return appendQuoted(b, fmt.Sprint(v.Any()))
}

// appendQuoted is strconv.AppendQuote, quickly for what nearly every value is:
// printable ASCII that needs no escape.
func appendQuoted(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return strconv.AppendQuote(b, s)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

func appendJSONValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindString:
		return appendJSON(b, v.String())
	case slog.KindInt64, slog.KindUint64, slog.KindBool:
		return appendPlainValue(b, v)
	case slog.KindDuration:
		return appendJSON(b, v.Duration().String())
	case slog.KindTime:
		return appendJSON(b, v.Time().UTC().Format(time.RFC3339Nano))
	case slog.KindAny, slog.KindFloat64, slog.KindGroup, slog.KindLogValuer: // by their Go type
	}
	x := v.Any()
	if err, ok := x.(error); ok {
		return appendJSON(b, err.Error())
	}
	j, err := json.Marshal(x)
	if err != nil {
		return appendJSON(b, fmt.Sprint(x))
	}
	return append(b, j...)
}

func appendJSON(b []byte, s string) []byte {
	j, err := json.Marshal(s)
	if err != nil {
		return append(b, `""`...)
	}
	return append(b, j...)
}

// appendBare keeps a value from breaking the line: control characters, which
// may come from a peer, are escaped.
func appendBare(b []byte, s string) []byte {
	plain := true
	for i := range len(s) {
		plain = plain && s[i] >= ' ' && s[i] < 0x7f
	}
	if plain {
		return append(b, s...)
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			b = strconv.AppendQuoteRune(b, r)
			continue
		}
		b = utf8.AppendRune(b, r)
	}
	return b
}

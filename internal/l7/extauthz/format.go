package extauthz

import (
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// format is the value of a header that is made of parts, some of them of the request.
type format []part

// part is text, or an operator.
type part struct {
	text string // or the name of a header, of opHeader
	op   operator
}

type operator uint8

const (
	opText operator = iota
	opMethod
	opScheme
	opAuthority
	opPath
	opHeader
	opAddress
	opAddressPort
)

// operators are those of Envoy's formats that say something of a request before it is
// answered.
var operators = map[string]operator{
	"REQ(:METHOD)": opMethod, "REQ(:SCHEME)": opScheme, "REQ(:AUTHORITY)": opAuthority, "REQ(:PATH)": opPath,
	"DOWNSTREAM_REMOTE_ADDRESS": opAddressPort, "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": opAddress,
}

// compileFormat reads text with operators between percent signs. Two of these are one.
func compileFormat(text string) (format, error) {
	var out format
	for text != "" {
		before, rest, found := strings.Cut(text, "%")
		if before != "" {
			out = append(out, part{text: before})
		}
		if !found {
			break
		}
		name, rest, closed := strings.Cut(rest, "%")
		if !closed {
			return nil, fmt.Errorf("%q ends in an operator; write %%%% for a percent sign", text)
		}
		text = rest
		if name == "" {
			out = append(out, part{text: "%"})
			continue
		}
		op, known := operators[name]
		header, is := strings.CutPrefix(name, "REQ(")
		header, ends := strings.CutSuffix(header, ")")
		_, fault := message.CheckName(header)
		switch {
		case known:
			out = append(out, part{op: op})
		case is && ends && fault == nil:
			out = append(out, part{op: opHeader, text: strings.ToLower(header)})
		default:
			return nil, fmt.Errorf("operator %%%s%% is not known: there are %%REQ(NAME)%%, %%REQ(:METHOD)%%, %%REQ(:SCHEME)%%, %%REQ(:AUTHORITY)%%, %%REQ(:PATH)%%, %%DOWNSTREAM_REMOTE_ADDRESS%% and %%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%%", name)
		}
	}
	return out, nil
}

// of returns the value for a request.
func (f format) of(q *Question) []byte {
	var out []byte
	r := q.Request
	for _, p := range f {
		switch p.op {
		case opText:
			out = append(out, p.text...)
		case opMethod:
			out = append(out, r.Method...)
		case opScheme:
			out = append(out, q.scheme()...)
		case opAuthority:
			out = append(out, r.Authority...)
		case opPath:
			out = append(out, r.Path...)
		case opAddress:
			out = append(out, q.Source.Addr().Unmap().String()...)
		case opAddressPort:
			out = append(out, q.Source.String()...)
		case opHeader:
			k := message.NewKey(p.text)
			for i, n := r.Find(k, 0), 0; i >= 0; i, n = r.Find(k, i+1), n+1 {
				if n > 0 {
					out = append(out, ',')
				}
				out = append(out, r.Fields[i].Value...)
			}
		}
	}
	return message.Trim(out)
}

func (q *Question) scheme() string {
	if q.TLS {
		return "https"
	}
	return "http"
}

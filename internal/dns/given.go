package dns

import (
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// maxGiven bounds the addresses of a response that are looked at.
const maxGiven = 64

// given is an address of a response.
type given struct {
	owner string
	addr  netip.Addr
	ttl   uint32
}

// Given has each called with the addresses that a response has for the name it was asked
// for, directly or by aliases, and with their time to live in seconds. It returns that name,
// in lower case and without a final dot; ok is false for a response without addresses of it.
// The message comes from outside.
func Given(m []byte, each func(addr netip.Addr, ttl uint32)) (name string, ok bool) {
	if len(m) < headerLength || m[2]&(bitResponse>>8) == 0 || m[3]&maskRcode != NoError {
		return "", false
	}
	var p dnsmessage.Parser
	if _, err := p.Start(m); err != nil {
		return "", false
	}
	q, err := p.Question()
	if err != nil || q.Class != dnsmessage.ClassINET || q.Type != dnsmessage.TypeA && q.Type != dnsmessage.TypeAAAA || p.SkipAllQuestions() != nil {
		return "", false
	}
	aliases, all, whole := section(&p)
	if !whole {
		return "", false
	}
	at := strings.ToLower(q.Name.String())
	name = strings.TrimSuffix(at, ".")
	ttl := ^uint32(0)
	for range maxChain + 1 {
		for _, g := range all {
			if g.owner == at {
				ok = true
				each(g.addr, min(g.ttl, ttl))
			}
		}
		next, more := aliases[at]
		if ok || !more {
			return name, ok
		}
		at, ttl = next.to, min(ttl, next.ttl)
	}
	return name, false // a circle
}

// alias is where a name leads.
type alias struct {
	to  string
	ttl uint32
}

// section reads the aliases and the addresses of an answer section. whole is false for one
// that cannot be read, or has too many.
func section(p *dnsmessage.Parser) (aliases map[string]alias, all []given, whole bool) {
	aliases = map[string]alias{}
	for {
		h, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone { //nolint:errorlint // the library returns it as it is
			return aliases, all, true
		}
		if err != nil || len(aliases) > maxChain {
			return nil, nil, false
		}
		owner := strings.ToLower(h.Name.String())
		switch {
		case h.Class != dnsmessage.ClassINET:
			err = p.SkipAnswer()
		case h.Type == dnsmessage.TypeA:
			var r dnsmessage.AResource
			if r, err = p.AResource(); err == nil && len(all) < maxGiven {
				all = append(all, given{owner, netip.AddrFrom4(r.A), h.TTL})
			}
		case h.Type == dnsmessage.TypeAAAA:
			var r dnsmessage.AAAAResource
			if r, err = p.AAAAResource(); err == nil && len(all) < maxGiven {
				all = append(all, given{owner, netip.AddrFrom16(r.AAAA).Unmap(), h.TTL})
			}
		case h.Type == dnsmessage.TypeCNAME:
			var r dnsmessage.CNAMEResource
			if r, err = p.CNAMEResource(); err == nil {
				aliases[owner] = alias{strings.ToLower(r.CNAME.String()), h.TTL}
			}
		default:
			err = p.SkipAnswer()
		}
		if err != nil {
			return nil, nil, false
		}
	}
}

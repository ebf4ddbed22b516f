package dns

import (
	"strings"

	"golang.org/x/net/dns/dnsmessage"
)

// maxChain bounds the aliases that a response is followed through.
const maxChain = 16

// dangling returns the name at the end of the aliases in a response, if there are
// aliases, and no addresses. The message comes from outside, and has pointers.
func dangling(m []byte) (target string, ok bool) {
	if len(m) < headerLength || m[3]&maskRcode != NoError && m[3]&maskRcode != NXDomain || m[2]&(bitTruncated>>8) != 0 {
		return "", false
	}
	var p dnsmessage.Parser
	if _, err := p.Start(m); err != nil {
		return "", false
	}
	q, err := p.Question()
	if err != nil || p.SkipAllQuestions() != nil {
		return "", false
	}
	at := strings.ToLower(q.Name.String())
	next := map[string]string{}
	for {
		h, err := p.AnswerHeader()
		if err == dnsmessage.ErrSectionDone { //nolint:errorlint // the library returns it as it is
			break
		}
		if err != nil || h.Type != dnsmessage.TypeCNAME || len(next) == maxChain {
			return "", false // addresses, or records of another type
		}
		r, err := p.CNAMEResource()
		if err != nil {
			return "", false
		}
		next[strings.ToLower(h.Name.String())] = strings.ToLower(r.CNAME.String())
	}
	for range maxChain {
		to, more := next[at]
		if !more {
			return strings.TrimSuffix(at, "."), len(next) > 0 && len(at) <= maxName
		}
		at = to
	}
	return "", false // a circle
}

package dns

import (
	"bytes"
	"testing"

	miekg "github.com/miekg/dns"
)

// FuzzMessage: no message is more than refused or passed on, and what is answered is a
// message that a second implementation reads in the same way as the question.
func FuzzMessage(f *testing.F) {
	s := world(f)
	f.Add(pack(f, "web.shop.svc.cluster.local", TypeA), []byte{})
	f.Add(pack(f, "api.example.com.shop.svc.cluster.local", TypeAAAA, func(m *miekg.Msg) { m.SetEdns0(1232, true) }), []byte{1})
	f.Add([]byte("\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"), []byte("\x00\x01\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"))
	r := Resolver{Domain: domain}
	f.Fuzz(func(t *testing.T, m, answer []byte) {
		kept := bytes.Clone(m)
		var q Question
		q.Parse(m)
		a, _, d := r.Resolve(s, &client, &q, 3)
		if d == Answered {
			for _, udp := range []bool{true, false} {
				out := q.Append(nil, m, a, udp)
				asked, got := unpack(t, m), unpack(t, out)
				if len(got.Question) != 1 || got.Question[0] != asked.Question[0] || got.Id != asked.Id || udp && len(out) > q.Size || !Answers(m, out) {
					t.Fatalf("%v answers %v", got, asked)
				}
			}
		}
		if fail := Fail(nil, m, ServFail); len(m) >= headerLength {
			if got := unpack(t, fail); !got.Response || got.Rcode != miekg.RcodeServerFailure {
				t.Fatalf("%v", got)
			}
		}
		Transfers(m)
		if Answers(m, answer) && (len(answer) < headerLength || answer[0] != m[0] || answer[1] != m[1] || answer[2]&0x80 == 0) {
			t.Fatalf("%x answers %x", answer, m)
		}
		r.Complete(s, &client, &q, answer, 3)
		Exists(bytes.Clone(answer))
		if !bytes.Equal(m, kept) {
			t.Fatal("the message was changed")
		}
	})
}

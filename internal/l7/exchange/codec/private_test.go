package codec

import (
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/message"
	"github.com/ambit-mesh/ambit/internal/transport/h2"
)

// TestPrivateFields: what a client has enter no compression table enters none of the next
// connection (RFC 7541, 6.2.3); of the parts of a cookie, one is enough.
func TestPrivateFields(t *testing.T) {
	in := h2.Header{Method: "GET", Scheme: "https", Authority: "a", Path: "/", Fields: []h2.Field{
		{Name: "authorization", Value: "Bearer x", Sensitive: true},
		{Name: "cookie", Value: "a=1"}, {Name: "accept", Value: "*/*"}, {Name: "cookie", Value: "b=2", Sensitive: true},
		{Name: "x-own", Value: "1", Sensitive: true},
	}}
	var read, kept message.Head
	if f := fromHTTP2(&read, &in); f != nil {
		t.Fatal(f)
	}
	kept.CopyFrom(&read)
	var r heads
	got := map[string]bool{}
	for _, f := range r.render(&kept, -1) {
		got[f.Name+" "+f.Value] = f.Sensitive
	}
	want := map[string]bool{"authorization Bearer x": true, "cookie a=1; b=2": true, "accept */*": false, "x-own 1": true}
	if len(got) != len(want) {
		t.Errorf("fields %v", got)
	}
	for f, private := range want {
		if got[f] != private {
			t.Errorf("%s: private %v, want %v", f, got[f], private)
		}
	}
}

package relay

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

// held passes what begins with "good", refuses what begins with "evil", and waits for four
// bytes; a connection that ends without any passes.
func held(late Verdict) func() *Hold {
	refusal := reason.Errorf(reason.EgressDenied, "not allowed")
	return func() *Hold {
		return &Hold{
			Time: 10 * time.Millisecond,
			Late: func() (Verdict, *reason.Error) { return late, refusal },
			Decide: func(first []byte, end bool) (Verdict, *reason.Error) {
				switch {
				case end || bytes.HasPrefix(first, []byte("good")):
					return Pass, nil
				case len(first) < 4:
					return Wait, nil
				}
				return Refuse, refusal
			},
		}
	}
}

// TestHold: the first bytes wait for the decision and are not lost; those of the other side go
// on. What is refused never arrives.
func TestHold(t *testing.T) {
	arrived := make(chan string, 10)
	p := newProxy(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "hello")
		b, _ := io.ReadAll(c)
		arrived <- string(b)
	})
	p.hold = held(Wait)
	greeting := func(c *net.TCPConn) {
		t.Helper()
		b := make([]byte, 5)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
			t.Fatalf("%q, %v", b, err)
		}
	}
	for _, parts := range [][]string{{"good and more"}, {"g", "o", "o", "d", " and more"}, nil} {
		c := p.connect()
		greeting(c)
		want := ""
		for _, part := range parts {
			want += part
			_, err := io.WriteString(c, part)
			check(t, err)
		}
		check(t, c.CloseWrite())
		if got := get(t, arrived, "the bytes"); got != want {
			t.Errorf("%q arrived, want %q", got, want)
		}
		if r := get(t, p.results, "the end"); r.Reason != reason.OK || r.Sent != uint64(len(want)) || r.Received != 5 {
			t.Errorf("%+v", r)
		}
		_ = c.Close()
	}
	c := p.connect()
	greeting(c)
	_, err := io.WriteString(c, "evil")
	check(t, err)
	if r := get(t, p.results, "the refusal"); r.Reason != reason.EgressDenied || r.Err == nil || r.Sent != 0 {
		t.Errorf("%+v", r)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection is open")
	}
	if got := get(t, arrived, "the end of the refused connection"); got != "" {
		t.Errorf("%q arrived", got)
	}
	// An abort ends one that waits.
	c = p.connect()
	greeting(c)
	for range 4 {
		get(t, p.flows, "a flow")
	}
	get(t, p.flows, "the flow").Abort(reason.PolicyChanged)
	if r := get(t, p.results, "the abort"); r.Reason != reason.PolicyChanged {
		t.Errorf("%+v", r)
	}
	get(t, arrived, "its end")
}

// TestHoldLate: the rest of the first bytes has a time.
func TestHoldLate(t *testing.T) {
	for late, want := range map[Verdict]reason.Reason{Refuse: reason.EgressDenied, Pass: reason.OK} {
		p := newProxy(t, echo)
		p.hold = held(late)
		c := p.connect()
		_, err := io.WriteString(c, "go")
		check(t, err)
		if late == Pass {
			b := make([]byte, 2)
			if _, err := io.ReadFull(c, b); err != nil || string(b) != "go" {
				t.Errorf("%q, %v", b, err)
			}
			check(t, c.CloseWrite())
		}
		if r := get(t, p.results, "the end"); r.Reason != want {
			t.Errorf("%+v, want %v", r, want)
		}
	}
}

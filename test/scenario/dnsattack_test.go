package scenario

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
	"github.com/ambit-mesh/ambit/test/rig"
)

// raw is a response that is written as it is.
func raw(q *dns.Msg, edit func(*dns.Msg)) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 600}, A: net.IPv4(6, 6, 6, 6)}}
	edit(m)
	return m
}

// forged are messages that answer another question than the one they come for.
var forged = map[string]func(*dns.Msg){
	"id":           func(m *dns.Msg) { m.Id++ },
	"name":         func(m *dns.Msg) { m.Question[0].Name = "evil.outside.test." },
	"longer name":  func(m *dns.Msg) { m.Question[0].Name = "x." + m.Question[0].Name },
	"type":         func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
	"class":        func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
	"operation":    func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify },
	"no response":  func(m *dns.Msg) { m.Response = false },
	"no question":  func(m *dns.Msg) { m.Question = nil },
	"two of them":  func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
	"empty error":  func(m *dns.Msg) { m.Question, m.Rcode = nil, dns.RcodeServerFailure },
	"other domain": func(m *dns.Msg) { m.Question[0].Name = "www.outside.evil." },
}

// TestDNSForged: what does not answer the question does not reach the pod, and what is
// said in passing of a name of the mesh changes nothing.
func TestDNSForged(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: named})
	ns := nameServerIn(world, "street", "tower")
	ns.answer(func(q *dns.Msg, tcp bool) []*dns.Msg {
		if !strings.HasPrefix(q.Question[0].Name, "www.") {
			return usual(q, tcp)
		}
		var all []*dns.Msg
		for _, edit := range forged {
			all = append(all, raw(q, edit))
		}
		if tcp {
			return all[:1]
		}
		right := usual(q, tcp)[0]
		right.Extra = append(right.Extra, &dns.A{Hdr: dns.RR_Header{Name: "ledger.example.", Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 600}, A: net.IPv4(6, 6, 6, 6)})
		return append(all, right)
	})
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		at := w.Pod("street", "tower", v6)
		m, err := look(w, looker, at, "udp", ask("www.outside.test", dns.TypeA))
		if err != nil || !slices.Equal(found(m), []string{"192.0.2.9"}) {
			t.Errorf("over UDP: %v, %v", m, err)
		}
		m, err = look(w, looker, at, "tcp", ask("www.outside.test", dns.TypeA))
		if err != nil || m.Rcode != dns.RcodeServerFailure || len(m.Answer) > 0 {
			t.Errorf("over TCP: %v, %v", m, err)
		}
		m, err = look(w, looker, at, "udp", ask("ledger.example", dns.TypeA))
		if err != nil || !slices.Equal(found(m), []string{"240.240.7.1"}) {
			t.Errorf("a name of the mesh: %v, %v", m, err)
		}
	})
	for _, s := range world.Metrics("node2", "ztunnel_dns_wrong_answers_total") {
		if s.Value < float64(2*len(forged)) {
			t.Errorf("%v messages were counted, at least %d were wrong", s.Value, 2*len(forged))
		}
	}
}

// TestDNSGuessed: a name server that sends many wrong answers, as one who guesses would,
// gets no more tries on that socket.
func TestDNSGuessed(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: named})
	ns := nameServerIn(world, "street", "tower")
	ns.answer(func(q *dns.Msg, tcp bool) []*dns.Msg {
		var all []*dns.Msg
		for range 64 {
			all = append(all, raw(q, forged["id"]))
		}
		return append(all, raw(q, func(*dns.Msg) {}))
	})
	failures := 0.0
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		c, err := w.Dial(t.Context(), looker, "udp", netip.AddrPortFrom(w.Pod("street", "tower", v6), 53).String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		conn := &dns.Conn{Conn: c}
		if err := conn.WriteMsg(ask("www.outside.test", dns.TypeA)); err != nil {
			t.Fatal(err)
		}
		failures++
		w.Eventually("the question is given up", func() error {
			for _, s := range w.Metrics("node2", "istio_dns_upstream_failures_total") {
				if s.Value == failures {
					return nil
				}
			}
			return errors.New("it is not")
		})
		_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond)) // it would have come already
		if m, err := conn.ReadMsg(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("answered after 64 guesses: %v, %v", m, err)
		}
	})
}

// TestDNSBeside: a pod beside can neither answer a look-up nor use the proxy of another.
func TestDNSBeside(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: named})
	ns := nameServerIn(world, "street", "tower")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		victim, thief := w.Pod("shop", "looker", v6), w.Netns(stranger)
		ns.answer(func(q *dns.Msg, tcp bool) []*dns.Msg {
			// The name server tells the attacker the port and the number, which it could
			// not know, and waits until its answer is out.
			ns.mu.Lock()
			port := ns.lastPort
			ns.mu.Unlock()
			b, err := raw(q, func(*dns.Msg) {}).Pack()
			if err == nil {
				err = thief.Do(func() error {
					c, err := net.Dial("udp", netip.AddrPortFrom(victim, port).String())
					if err != nil {
						return err
					}
					defer func() { _ = c.Close() }()
					for range 10 {
						_, _ = c.Write(b) // an ICMP error is what is hoped for
					}
					return nil
				})
			}
			if err != nil {
				t.Error(err)
			}
			return usual(q, tcp)
		})
		m, err := look(w, looker, w.Pod("street", "tower", v6), "udp", ask("www.outside.test", dns.TypeA))
		if err != nil || !slices.Equal(found(m), []string{"192.0.2.9"}) {
			t.Errorf("%v, %v", m, err)
		}
		ns.answer(usual)

		port := netip.AddrPortFrom(victim, wellknown.PortDNS)
		for _, from := range []lab.Where{stranger, far} {
			for _, network := range []string{"udp", "tcp"} {
				if m, err := lookAt(w, from, port, network, ask("ledger.example", dns.TypeA)); err == nil {
					t.Errorf("%s is answered by the proxy of another pod over %s: %v", from, network, m)
				}
			}
		}
	})
}

// TestDNSGarbage: messages of any form leave the proxy as it was.
func TestDNSGarbage(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: named})
	nameServerIn(world, "street", "tower")
	head := func(flags, questions uint16, rest string) []byte {
		b := binary.BigEndian.AppendUint16(nil, 77)
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint16(b, questions)
		return append(append(b, 0, 0, 0, 0, 0, 0), rest...)
	}
	long := ""
	for range 5 {
		long += "\x3f" + strings.Repeat("a", 63)
	}
	garbage := map[string][]byte{
		"nothing":         {},
		"a byte":          {0},
		"half a header":   {0, 1, 1, 0, 0},
		"a header":        head(0x100, 0, ""),
		"no question":     head(0x100, 1, ""),
		"a loop":          head(0x100, 1, "\xc0\x0c\x00\x01\x00\x01"),
		"a loop of two":   head(0x100, 1, "\x01a\xc0\x0c\x00\x01\x00\x01"),
		"a pointer ahead": head(0x100, 1, "\xc0\xff\x00\x01\x00\x01"),
		"a long name":     head(0x100, 1, long+"\x00\x00\x01\x00\x01"),
		"no end":          head(0x100, 1, "\x3fabc"),
		"a response":      head(0x8180, 1, "\x06ledger\x07example\x00\x00\x01\x00\x01"),
		"65535 questions": head(0x100, 65535, "\x06ledger\x07example\x00\x00\x01\x00\x01"),
		"all ones":        []byte(strings.Repeat("\xff", 4000)),
		"zeros":           make([]byte, 60000),
	}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		at := w.Pod("street", "tower", v6)
		for name, b := range garbage {
			c, err := w.Dial(t.Context(), looker, "udp", netip.AddrPortFrom(at, 53).String())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(b); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			_ = c.Close()
			c, err = w.Dial(t.Context(), looker, "tcp", netip.AddrPortFrom(at, 53).String())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)) // the proxy may have reset it
			_ = c.(*net.TCPConn).CloseWrite()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: the connection does not end", name)
			}
			_ = c.Close()
			m, err := look(w, looker, at, "udp", ask("ledger.example", dns.TypeA))
			if err != nil || !slices.Equal(found(m), []string{"240.240.7.1"}) {
				t.Errorf("after %s: %v, %v", name, m, err)
			}
			m, err = look(w, looker, at, "tcp", ask("www.outside.test", dns.TypeA))
			if err != nil || !slices.Equal(found(m), []string{"192.0.2.9"}) {
				t.Errorf("after %s: %v, %v", name, m, err)
			}
		}
	})
}

// TestDNSFlood: a pod that asks without end is refused, and the look-ups of others go on,
// those of the mesh's names and those that a name server answers.
func TestDNSFlood(t *testing.T) {
	world := rig.Start(t, lab.Config{YAML: named + captured("flooder", "")})
	nameServerIn(world, "street", "tower")
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		hole := netip.MustParseAddr("10.88.2.250") // on the node's network, and no pod has it
		if v6 {
			hole = netip.MustParseAddr("fd88:0:0:2::fa")
		}
		var stop atomic.Bool
		done := make(chan int)
		for i := range 2 {
			c, err := w.Dial(t.Context(), lab.InPod("shop", "flooder"), "udp", netip.AddrPortFrom(hole, 53).String())
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				defer func() { _ = c.Close() }()
				n := 0
				for ; !stop.Load(); n++ {
					b, _ := ask(fmt.Sprintf("f%d-%d.outside.test", i, n), dns.TypeA).Pack()
					_, _ = c.Write(b)
				}
				done <- n
			}()
		}
		at := w.Pod("street", "tower", v6)
		for range 50 {
			m, err := look(w, looker, at, "udp", ask("ledger.example", dns.TypeA))
			if err != nil || !slices.Equal(found(m), []string{"240.240.7.1"}) {
				t.Errorf("a name of the mesh: %v, %v", m, err)
				break
			}
			m, err = look(w, looker, at, "udp", ask("www.outside.test", dns.TypeA))
			if err != nil || !slices.Equal(found(m), []string{"192.0.2.9"}) {
				t.Errorf("a name of outside: %v, %v", m, err)
				break
			}
		}
		w.Eventually("the flood is refused", func() error {
			for _, s := range w.Metrics("node2", "ztunnel_dns_shed_total") {
				if s.Value > 0 {
					return nil
				}
			}
			return errors.New("nothing was refused")
		})
		stop.Store(true)
		n := 0
		for range 2 {
			n += <-done
		}
		t.Logf("%d questions", n)
	})
}

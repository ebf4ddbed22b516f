// Package trace reads frames from the link between the nodes of a lab and says
// for every flow what an eavesdropper there learns: nothing but a tunnel, some
// other TLS, or the application's bytes in the clear. Pure: frames in, verdicts
// out; nothing is kept of a frame but counters and one short excerpt.
package trace

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Kind is what the bytes of a flow are, to whoever listens.
type Kind string

// The kinds, from best to worst for an eavesdropper's victim.
const (
	Silent    Kind = "silent"    // no payload seen
	HBONE     Kind = "hbone"     // TLS to port 15008: the mesh's tunnel
	TLS       Kind = "tls"       // TLS elsewhere
	Opaque    Kind = "opaque"    // seen only from the middle, or to port 15008; nothing readable
	Plaintext Kind = "plaintext" // readable by anyone on the link
)

// Flow is one TCP connection or UDP conversation between two ends. Client is
// the end that opened it, as far as that was seen.
type Flow struct {
	Protocol  string         `json:"protocol"` // tcp, udp
	Client    netip.AddrPort `json:"client"`
	Server    netip.AddrPort `json:"server"`
	Kind      Kind           `json:"kind"`
	Plaintext bool           `json:"plaintext"` // bytes of an application could be read
	Packets   int            `json:"packets"`
	Bytes     int64          `json:"bytes"`             // of payload
	Excerpt   string         `json:"excerpt,omitempty"` // of what could be read
	Marks     int            `json:"marks"`             // packets with the text that was looked for
	Reset     bool           `json:"reset,omitempty"`
}

// Report is what was learnt of all flows.
type Report struct {
	Flows     []Flow `json:"flows"`
	Frames    int    `json:"frames"`
	Dropped   int    `json:"dropped"`   // frames that the kernel had no room for
	Forgotten int    `json:"forgotten"` // frames of flows beyond the bound
}

// Bounds.
const (
	maxFlows   = 10000 // flows remembered
	maxExcerpt = 64    // bytes of one quoted
)

type flowKey struct {
	proto byte
	a, b  netip.AddrPort // a is the lesser
}

type flowState struct {
	Flow
	sawTLS, sawClear bool
	middle           bool // its beginning was not seen
}

// Tracer collects flows. Not safe for concurrent use.
type Tracer struct {
	// Mark is a text to look for in the clear; none when empty.
	Mark string

	flows  map[flowKey]*flowState
	order  []*flowState
	report Report
}

// NewTracer looks for mark in everything it is given.
func NewTracer(mark string) *Tracer {
	return &Tracer{Mark: mark, flows: map[flowKey]*flowState{}}
}

// Protocol numbers and sizes of headers, in bytes.
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherLen  = 14
	ipv4Len   = 20
	ipv6Len   = 40
	tcpLen    = 20
	udpLen    = 8
	protoTCP  = 6
	protoUDP  = 17
	flagSYN   = 0x02
	flagRST   = 0x04
	flagACK   = 0x10
)

// packet is what of a frame counts here.
type packet struct {
	proto    byte
	src, dst netip.AddrPort
	flags    byte // of TCP
	payload  []byte
}

// Frame takes one Ethernet frame; it may be cut short.
func (t *Tracer) Frame(b []byte) {
	t.report.Frames++
	p, ok := decode(b)
	if !ok {
		return
	}
	f := t.flow(p)
	if f == nil {
		t.report.Forgotten++
		return
	}
	f.Packets++
	f.Reset = f.Reset || p.flags&flagRST != 0
	if len(p.payload) == 0 {
		return
	}
	f.Bytes += int64(len(p.payload))
	t.judge(f, p.payload)
}

func decode(b []byte) (p packet, ok bool) {
	if len(b) < etherLen {
		return p, false
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case etherIPv4:
		return decodeIPv4(b[etherLen:])
	case etherIPv6:
		return decodeIPv6(b[etherLen:])
	}
	return p, false
}

func decodeIPv4(b []byte) (p packet, ok bool) {
	if len(b) < ipv4Len || b[0]>>4 != 4 {
		return p, false
	}
	head := int(b[0]&0x0f) * 4
	total := int(binary.BigEndian.Uint16(b[2:]))
	// Fragments after the first have no ports. Total is 0 in frames larger
	// than it can say, which one machine passes along uncut.
	if head < ipv4Len || len(b) < head || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return p, false
	}
	if total >= head && total < len(b) {
		b = b[:total]
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
	return decodeTransport(b[9], src, dst, b[head:])
}

func decodeIPv6(b []byte) (p packet, ok bool) {
	if len(b) < ipv6Len || b[0]>>4 != 6 {
		return p, false
	}
	n := int(binary.BigEndian.Uint16(b[4:]))
	body := b[ipv6Len:]
	if n > 0 && n < len(body) {
		body = body[:n]
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
	return decodeTransport(b[6], src, dst, body)
}

func decodeTransport(proto byte, src, dst netip.Addr, b []byte) (p packet, ok bool) {
	p.proto = proto
	switch proto {
	case protoTCP:
		if len(b) < tcpLen {
			return p, false
		}
		head := int(b[12]>>4) * 4
		if head < tcpLen || len(b) < head {
			return p, false
		}
		p.flags, p.payload = b[13], b[head:]
	case protoUDP:
		if len(b) < udpLen {
			return p, false
		}
		p.payload = b[udpLen:]
	default:
		return p, false
	}
	p.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b))
	p.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
	return p, true
}

// flow finds the flow of a packet, or begins one.
func (t *Tracer) flow(p packet) *flowState {
	k := flowKey{p.proto, p.src, p.dst}
	if p.dst.Compare(p.src) < 0 {
		k.a, k.b = p.dst, p.src
	}
	syn := p.proto == protoTCP && p.flags&(flagSYN|flagACK) == flagSYN
	f := t.flows[k]
	if f != nil && (!syn || f.Bytes == 0) {
		return f
	}
	// A SYN on a flow that has carried something: the ports are used again.
	if len(t.order) >= maxFlows {
		return nil
	}
	f = &flowState{Flow: Flow{Protocol: "tcp", Client: p.src, Server: p.dst, Kind: Silent}}
	if p.proto == protoUDP {
		f.Protocol = "udp"
	}
	if !syn && (p.flags&flagSYN != 0 || p.src.Port() < p.dst.Port()) {
		// The answer to a SYN, or the middle of something: the lower port is
		// more likely the server's.
		f.Client, f.Server = p.dst, p.src
	}
	f.middle = p.proto == protoTCP && p.flags&flagSYN == 0
	t.flows[k] = f
	t.order = append(t.order, f)
	return f
}

// judge looks at the payload of one packet.
func (t *Tracer) judge(f *flowState, b []byte) {
	if t.Mark != "" && bytes.Contains(b, []byte(t.Mark)) {
		f.Marks++
	}
	tunnel := f.Server.Port() == wellknown.PortHBONE
	switch {
	case tlsRecord(b):
		f.sawTLS = true
	case f.sawTLS:
		// The rest of a record that began in an earlier packet. Those who want
		// to be sure look for a mark.
	case (tunnel || f.middle) && !readable(b):
	default:
		f.sawClear = true
		if f.Excerpt == "" {
			f.Excerpt = quote(b)
		}
	}
	f.Plaintext = f.sawClear || f.Marks > 0
	switch {
	case f.Plaintext:
		f.Kind = Plaintext
	case f.sawTLS && tunnel:
		f.Kind = HBONE
	case f.sawTLS:
		f.Kind = TLS
	default:
		f.Kind = Opaque
	}
}

// tlsRecord reports whether bytes begin like a TLS record.
func tlsRecord(b []byte) bool {
	const maxRecord = 1<<14 + 256
	return len(b) >= 5 && b[0] >= 20 && b[0] <= 23 && b[1] == 3 && b[2] <= 4 && int(b[3])<<8|int(b[4]) <= maxRecord
}

// readable reports whether bytes look like text. Of random bytes, 38 in 100 do.
func readable(b []byte) bool {
	b = b[:min(len(b), 256)]
	n := 0
	for _, c := range b {
		if c >= ' ' && c < 0x7f || c == '\n' || c == '\r' || c == '\t' {
			n++
		}
	}
	return len(b) >= 16 && n*10 >= len(b)*8
}

func quote(b []byte) string {
	s := strconv.QuoteToASCII(string(b[:min(len(b), maxExcerpt)]))
	return s[1 : len(s)-1]
}

// Dropped adds frames that were lost before they came here.
func (t *Tracer) Dropped(n int) { t.report.Dropped += n }

// Report tells about all flows so far, oldest first.
func (t *Tracer) Report() Report {
	r := t.report
	r.Flows = make([]Flow, len(t.order))
	for i, f := range t.order {
		r.Flows[i] = f.Flow
	}
	return r
}

// Of keeps the flows that keep is true for.
func (r Report) Of(keep func(Flow) bool) []Flow {
	return slices.DeleteFunc(slices.Clone(r.Flows), func(f Flow) bool { return !keep(f) })
}

// Between keeps the flows that have one of the addresses at each end, on
// whatever port.
func (r Report) Between(a, b []netip.Addr) []Flow {
	return r.Of(func(f Flow) bool {
		c, s := f.Client.Addr(), f.Server.Addr()
		return slices.Contains(a, c) && slices.Contains(b, s) || slices.Contains(b, c) && slices.Contains(a, s)
	})
}

// Summary counts flows by kind in one line.
func Summary(flows []Flow) string {
	n := map[Kind]int{}
	var marks int
	for _, f := range flows {
		n[f.Kind]++
		marks += f.Marks
	}
	var kinds []Kind
	for k := range n {
		kinds = append(kinds, k)
	}
	slices.SortFunc(kinds, cmp.Compare)
	s := fmt.Sprintf("%d flows", len(flows))
	if len(flows) == 1 {
		s = "1 flow"
	}
	for _, k := range kinds {
		s += fmt.Sprintf(", %d %s", n[k], k)
	}
	if marks > 0 {
		s += fmt.Sprintf("; the text was seen %d times", marks)
	}
	return s
}

package h2

import (
	"runtime"
	"testing"
	"unsafe"
)

// sink is a Handler that consumes everything at once and answers requests.
type sink struct {
	conn  *Conn
	bytes int
}

func (k *sink) OnHeaders(s *Stream, h *Header, end bool) {
	if h.Method != "" {
		_ = k.conn.Respond(s, &Header{Status: 200}, false)
	}
}

func (k *sink) OnData(s *Stream, p []byte, end bool) {
	k.bytes += len(p)
	k.conn.Consumed(s, len(p))
	if end {
		k.conn.AppendData(s, nil, true)
	}
}
func (*sink) OnReset(*Stream, ErrCode)         {}
func (*sink) OnWritable(*Stream)               {}
func (*sink) OnGoAway(uint32, ErrCode, []byte) {}
func (*sink) OnSettings()                      {}
func (*sink) OnPong([8]byte)                   {}

// pair is a client and a server that are joined by moving bytes by hand.
type pair struct {
	client, server *Conn
	cs, ss         sink
	tb             testing.TB
}

func newPair(tb testing.TB) *pair {
	p := &pair{tb: tb}
	p.client, p.server = New(Config{}, &p.cs), New(Config{Server: true}, &p.ss)
	p.cs.conn, p.ss.conn = p.client, p.server
	p.settle()
	return p
}

// settle moves bytes until both are silent.
func (p *pair) settle() {
	for len(p.client.Output())+len(p.server.Output()) > 0 {
		p.move(p.client, p.server)
		p.move(p.server, p.client)
	}
}

func (p *pair) move(from, to *Conn) {
	b := from.Output()
	if len(b) == 0 {
		return
	}
	if err := to.Receive(t0, b); err != nil {
		p.tb.Fatal(err)
	}
	from.Wrote(len(b))
}

func (p *pair) open() *Stream {
	s, err := p.client.Open(&Header{Method: "CONNECT", Authority: "10.0.0.1:80", Fields: hboneFields}, false)
	if err != nil {
		p.tb.Fatal(err)
	}
	p.settle()
	return s
}

// hboneFields are what a tunnel's request carries.
var hboneFields = []Field{
	{Name: "baggage", Value: "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=sleep,service.name=sleep,service.version=v1"},
	{Name: "forwarded", Value: `for="10.0.0.7:43210"`, Sensitive: true},
	{Name: "traceparent", Value: "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01", Sensitive: true},
}

// BenchmarkData is one DATA frame of the size named from client to server:
// both copies of the engine, window updates included.
func BenchmarkData(b *testing.B) {
	for _, c := range []struct {
		name string
		size int
	}{{"64B", 64}, {"1KiB", 1 << 10}, {"16KiB", 16 << 10}} {
		b.Run(c.name, func(b *testing.B) {
			p := newPair(b)
			s, payload := p.open(), make([]byte, c.size)
			b.SetBytes(int64(c.size))
			b.ReportAllocs()
			for b.Loop() {
				if !p.client.AppendData(s, payload, false) {
					p.settle()
				}
				p.settle()
			}
		})
	}
}

// BenchmarkDataHeader is a large frame that is not copied: its header, and its
// reception in one piece.
func BenchmarkDataHeader(b *testing.B) {
	p := newPair(b)
	s := p.open()
	frame := make([]byte, FrameHeaderLen+16<<10)
	b.SetBytes(16 << 10)
	b.ReportAllocs()
	for b.Loop() {
		if !p.client.DataHeader(frame, s, 16<<10, false) {
			b.Fatal("no quota")
		}
		if err := p.server.Receive(t0, frame); err != nil {
			b.Fatal(err)
		}
		p.settle()
	}
}

// BenchmarkReceiveBatch is the receiving side alone: 64 frames of 1 KiB of
// eight streams in one read.
func BenchmarkReceiveBatch(b *testing.B) {
	p := newPair(b)
	var streams [8]*Stream
	for i := range streams {
		streams[i] = p.open()
	}
	payload := make([]byte, 1<<10)
	b.SetBytes(64 << 10)
	b.ReportAllocs()
	for b.Loop() {
		for i := range 64 {
			p.client.AppendData(streams[i%8], payload, false)
		}
		p.settle()
	}
}

// TestDataPathDoesNotAllocate keeps what the benchmarks show: DATA in both
// roles, its window updates, and PINGs cost no memory.
func TestDataPathDoesNotAllocate(t *testing.T) {
	p := newPair(t)
	s, payload := p.open(), make([]byte, 8<<10)
	frame := make([]byte, FrameHeaderLen+8<<10)
	allocs := testing.AllocsPerRun(5000, func() {
		p.client.AppendData(s, payload[:100], false)
		p.client.AppendData(s, payload, false)
		p.client.Ping([8]byte{1})
		p.settle()
		if p.client.DataHeader(frame, s, 8<<10, false) {
			_ = p.server.Receive(t0, frame)
		}
		p.settle()
	})
	// The collector may empty the buffer pool, and the race detector makes it
	// forget on purpose; an allocation a frame would be five and more.
	if allocs >= 4 {
		t.Errorf("%v allocations a round", allocs)
	}
	if p.ss.bytes < 5000*(16<<10) {
		t.Errorf("only %d bytes arrived", p.ss.bytes)
	}
}

// TestSizes keeps idle connections and held streams small.
func TestSizes(t *testing.T) {
	if n := unsafe.Sizeof(Conn{}); n > 640 {
		t.Errorf("a Conn weighs %d bytes", n)
	}
	if n := unsafe.Sizeof(Stream{}); n > 96 {
		t.Errorf("a Stream weighs %d bytes", n)
	}
	c := New(Config{Server: true}, &sink{})
	c.Wrote(len(c.Output()))
	if c.out != nil || c.dec != nil || c.enc != nil || c.rx.buf != nil {
		t.Error("an idle connection holds buffers")
	}
}

// BenchmarkStream is the life of a stream with HBONE's headers: CONNECT, 200,
// END_STREAM both ways, at both ends.
func BenchmarkStream(b *testing.B) {
	p := newPair(b)
	b.ReportAllocs()
	for b.Loop() {
		s := p.open()
		p.client.AppendData(s, nil, true)
		p.settle()
		if !s.Closed() {
			b.Fatal("stream did not end")
		}
	}
}

// BenchmarkIdle prints what an idle connection and a held stream weigh.
func BenchmarkIdle(b *testing.B) {
	for b.Loop() { // nothing to time
		runtime.KeepAlive(b)
	}
	b.ReportMetric(float64(unsafe.Sizeof(Conn{})), "B/Conn")
	b.ReportMetric(float64(unsafe.Sizeof(Stream{})), "B/Stream")
	const n = 1000
	fresh := weigh(func() any {
		conns := make([]*Conn, n)
		for i := range conns {
			conns[i] = New(Config{Server: true}, &sink{})
			conns[i].Wrote(1 << 20)
		}
		return conns
	})
	used := weigh(func() any {
		pairs := make([]*pair, n)
		for i := range pairs {
			pairs[i] = newPair(b)
			s := pairs[i].open()
			pairs[i].client.AppendData(s, nil, true)
			pairs[i].settle()
		}
		return pairs
	})
	held := weigh(func() any {
		p := newPair(b)
		p.client.cfg.MaxStreams, p.server.cfg.MaxStreams, p.client.peerMaxStreams = n, n, n
		for range n {
			p.open()
		}
		return p
	})
	b.ReportMetric(float64(fresh)/n, "B/fresh-conn")
	b.ReportMetric(float64(used)/n/2, "B/used-conn")
	b.ReportMetric(float64(held)/n/2, "B/held-stream")
}

// weigh returns how much the heap holds for what f makes, in bytes.
func weigh(f func() any) uint64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	v := f()
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(v)
	return max(after.HeapAlloc, before.HeapAlloc) - before.HeapAlloc
}

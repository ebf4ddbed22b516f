package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// window is the flow-control window that both ends of HTTP/2 give, of a connection and of
// each of its streams.
const window = 16 << 20

// message is the size of the message of a call of gRPC, in bytes.
const message = 64

// h2End is one end of a connection of HTTP/2. It writes when it has nothing more to read.
type h2End struct {
	*http2.Framer
	r    *bufio.Reader
	w    *bufio.Writer
	head bytes.Buffer
	enc  *hpack.Encoder
	owed uint32 // credit for bytes that have come
}

func newH2(c io.ReadWriter) *h2End {
	e := &h2End{r: bufio.NewReaderSize(c, 32<<10), w: bufio.NewWriterSize(c, 80<<10)}
	e.Framer = http2.NewFramer(e.w, e.r)
	e.SetReuseFrames()
	e.enc = hpack.NewEncoder(&e.head)
	return e
}

func (e *h2End) begin() error {
	return errors.Join(
		e.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1000}),
		e.WriteWindowUpdate(0, window-65535),
	)
}

// headers writes a head: names and values in turn.
func (e *h2End) headers(stream uint32, end bool, fields ...string) error {
	e.head.Reset()
	for i := 0; i < len(fields); i += 2 {
		_ = e.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // to a buffer
	}
	return e.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: e.head.Bytes(), EndHeaders: true, EndStream: end})
}

// next reads a frame, after it has written what is there if that has to wait.
func (e *h2End) next() (http2.Frame, error) {
	if e.r.Buffered() == 0 && e.w.Buffered() > 0 {
		if err := e.w.Flush(); err != nil {
			return nil, err
		}
	}
	return e.ReadFrame()
}

// common does what both ends do with a frame.
func (e *h2End) common(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if v, ok := f.Value(http2.SettingHeaderTableSize); ok {
			e.enc.SetMaxDynamicTableSizeLimit(v)
		}
		if !f.IsAck() {
			return e.WriteSettingsAck()
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return e.WritePing(true, f.Data)
		}
	case *http2.DataFrame:
		if e.owed += f.Length; e.owed >= window/2 {
			n := e.owed
			e.owed = 0
			return e.WriteWindowUpdate(0, n)
		}
	}
	return nil
}

// h2Server is the server's end.
type h2Server struct {
	*h2End
	dec     *hpack.Decoder
	initial int64            // window of a new stream
	conn    int64            // window of the connection
	streams map[uint32]int64 // windows of streams
	asked   map[uint32]*h2Answer
	waiting []*h2Answer // for windows
	path    string
	grpc    bool
}

// h2Answer is a response under way.
type h2Answer struct {
	stream uint32
	grpc   bool
	prefix []byte // of the message of gRPC
	left   int
}

// serveHTTP2 answers requests on a connection of HTTP/2 with prior knowledge.
func serveHTTP2(c net.Conn, first byte) {
	preface := make([]byte, len(http2.ClientPreface)-1)
	if _, err := io.ReadFull(c, preface); err != nil || string(first)+string(preface) != http2.ClientPreface {
		return
	}
	s := &h2Server{h2End: newH2(c), initial: 65535, conn: 65535, streams: map[uint32]int64{}, asked: map[uint32]*h2Answer{}}
	s.dec = hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		switch f.Name {
		case ":path":
			s.path = f.Value
		case "content-type":
			s.grpc = strings.HasPrefix(f.Value, "application/grpc")
		}
	})
	for err := s.begin(); err == nil; err = s.turn() {
	}
}

func (s *h2Server) turn() error {
	f, err := s.next()
	if err == nil {
		err = s.common(f)
	}
	if err != nil {
		return err
	}
	id := f.Header().StreamID
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
			for id := range s.streams {
				s.streams[id] += int64(v) - s.initial
			}
			s.initial = int64(v)
		}
	case *http2.WindowUpdateFrame:
		if id == 0 {
			s.conn += int64(f.Increment)
		} else if _, ok := s.streams[id]; ok {
			s.streams[id] += int64(f.Increment)
		}
		return s.send()
	case *http2.HeadersFrame:
		s.path, s.grpc = "", false
		if _, err := s.dec.Write(f.HeaderBlockFragment()); err != nil || !f.HeadersEnded() {
			return errors.Join(err, errors.New("a head of several frames"))
		}
		s.streams[id] = s.initial
		s.asked[id] = &h2Answer{stream: id, grpc: s.grpc, left: bodyOf([]byte(s.path))}
		if f.StreamEnded() {
			return s.answer(id)
		}
	case *http2.DataFrame:
		if f.StreamEnded() {
			return s.answer(id)
		}
	case *http2.RSTStreamFrame:
		delete(s.streams, id)
		delete(s.asked, id)
	case *http2.GoAwayFrame:
		return io.EOF
	}
	return nil
}

func (s *h2Server) answer(id uint32) error {
	a := s.asked[id]
	if a == nil {
		return nil
	}
	delete(s.asked, id)
	kind := "text/plain"
	if a.grpc {
		kind = "application/grpc"
		a.prefix = binary.BigEndian.AppendUint32([]byte{0}, uint32(a.left))
	}
	if err := s.headers(id, false, ":status", "200", "content-type", kind); err != nil {
		return err
	}
	s.waiting = append(s.waiting, a)
	return s.send()
}

// send sends what the windows allow.
func (s *h2Server) send() error {
	rest := s.waiting[:0]
	for _, a := range s.waiting {
		room, ok := s.streams[a.stream]
		if !ok {
			continue // it was reset
		}
		for total := len(a.prefix) + a.left; total > 0 && min(room, s.conn) >= int64(min(total, 16<<10)); total = len(a.prefix) + a.left {
			n := min(total, 16<<10)
			body := payload[:n-len(a.prefix)]
			last := n == total && !a.grpc
			if len(a.prefix) > 0 {
				body = append(a.prefix, body...)
			}
			if err := s.WriteData(a.stream, last, body); err != nil {
				return err
			}
			a.left -= n - len(a.prefix)
			a.prefix = nil
			room, s.conn = room-int64(n), s.conn-int64(n)
		}
		if s.streams[a.stream] = room; len(a.prefix)+a.left > 0 {
			rest = append(rest, a)
			continue
		}
		delete(s.streams, a.stream)
		if a.grpc {
			if err := s.headers(a.stream, true, "grpc-status", "0"); err != nil {
				return err
			}
		}
	}
	s.waiting = rest
	return nil
}

func talkHTTP2(o options, c net.Conn) func() error { return askHTTP2(o, c, false) }

func talkGRPC(o options, c net.Conn) func() error { return askHTTP2(o, c, true) }

// askHTTP2 makes one request after the other on a connection: GET, or a call of gRPC.
func askHTTP2(o options, c net.Conn, grpc bool) func() error {
	e := newH2(c)
	status, grpcStatus := "", ""
	dec := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		switch f.Name {
		case ":status":
			status = f.Value
		case "grpc-status":
			grpcStatus = f.Value
		}
	})
	stream := uint32(1)
	body := append(binary.BigEndian.AppendUint32([]byte{0}, message), make([]byte, message)...)
	_, err := e.w.WriteString(http2.ClientPreface)
	err = errors.Join(err, e.begin())
	fields := []string{":method", "GET", ":scheme", "http", ":path", requestPath(o.size), ":authority", o.addr, "user-agent", "load", "accept", "*/*"}
	if grpc {
		fields = append(fields[:8], "content-type", "application/grpc", "te", "trailers", "user-agent", "load")
		fields[1] = "POST"
	}
	if o.token != "" {
		fields = append(fields, "authorization", "Bearer "+o.token)
	}
	return func() error {
		if err != nil {
			return err
		}
		want := o.size
		if grpc {
			want += 5 // of the message's prefix
			err = errors.Join(
				e.headers(stream, false, fields...),
				e.WriteData(stream, true, body))
		} else {
			err = e.headers(stream, true, fields...)
		}
		status, grpcStatus = "", ""
		got := 0
		for err == nil {
			f, ferr := e.next()
			if ferr == nil {
				ferr = e.common(f)
			}
			if ferr != nil {
				err = ferr
				break
			}
			ended := false
			switch f := f.(type) {
			case *http2.HeadersFrame:
				if _, err := dec.Write(f.HeaderBlockFragment()); err != nil {
					return err
				}
				ended = f.StreamEnded()
			case *http2.DataFrame:
				got += len(f.Data())
				ended = f.StreamEnded()
			case *http2.RSTStreamFrame:
				return fmt.Errorf("the stream was reset: %v", f.ErrCode)
			case *http2.GoAwayFrame:
				return fmt.Errorf("the connection ends: %v", f.ErrCode)
			}
			if ended {
				break
			}
		}
		stream += 2
		if err == nil && (status != "200" || got != want || grpc && grpcStatus != "0") {
			return fmt.Errorf("the answer has status %q, gRPC's %q, and %d bytes", status, grpcStatus, got)
		}
		return err
	}
}

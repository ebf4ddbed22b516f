package attack

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// hog is a gRPC client that announces a large message, sends as much of it as
// the server lets it, and holds the last byte back.
type hog struct {
	token, method string
	size          int

	mu           sync.Mutex
	fr           *http2.Framer
	changed      chan struct{}
	conn, stream int // windows
	ended        error
}

var errHeld = errors.New("the server holds the message")

// windowStep is the most that a hog writes at once: a frame's largest payload.
const windowStep = 16 << 10

// run returns how much the server took, and how the call ended; nil when the
// server took everything.
func (h *hog) run(ctx context.Context, dial func(context.Context, string) (net.Conn, error), address string) (sent int64, err error) {
	raw, err := dial(ctx, address)
	if err != nil {
		return 0, err
	}
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}) //nolint:gosec // an attacker
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(2 * patience))
	h.fr = http2.NewFramer(conn, conn)
	h.changed, h.conn, h.stream = make(chan struct{}, 1), 1<<16-1, 1<<16-1
	if err := h.begin(conn); err != nil {
		return 0, err
	}
	go h.read()
	left := append(make([]byte, 0, windowStep), 0)
	left = binary.BigEndian.AppendUint32(left, uint32(h.size))[:windowStep]
	for sent < int64(h.size)+4 {
		n, err := h.room(ctx, min(windowStep, h.size+4-int(sent)))
		if err != nil {
			return sent, err
		}
		h.mu.Lock()
		err = h.fr.WriteData(1, false, left[:n])
		h.mu.Unlock()
		if err != nil {
			return sent, err
		}
		if sent += int64(n); sent == int64(n) {
			left = make([]byte, windowStep)
		}
	}
	return sent, h.end(ctx)
}

// end waits until the server ends the call; nil when it does not, and holds what
// it has.
func (h *hog) end(ctx context.Context) error {
	held := time.NewTimer(patience)
	defer held.Stop()
	for {
		h.mu.Lock()
		ended := h.ended
		h.mu.Unlock()
		if ended != nil {
			return ended
		}
		select {
		case <-h.changed:
		case <-held.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (h *hog) begin(conn net.Conn) error {
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		return err
	}
	if err := h.fr.WriteSettings(); err != nil {
		return err
	}
	var block headers
	enc := hpack.NewEncoder(&block)
	fields := []string{":method", "POST", ":scheme", "https", ":path", h.method, ":authority", "ambitd", "content-type", "application/grpc", "te", "trailers"}
	if h.token != "" {
		fields = append(fields, "authorization", "Bearer "+h.token)
	}
	for i := 0; i < len(fields); i += 2 {
		if err := enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}); err != nil {
			return err
		}
	}
	return h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block, EndHeaders: true})
}

type headers []byte

func (b *headers) Write(p []byte) (int, error) { *b = append(*b, p...); return len(p), nil }

// read follows what the server says until it ends the call.
func (h *hog) read() {
	for {
		f, err := h.fr.ReadFrame()
		h.mu.Lock()
		switch f := f.(type) {
		case *http2.WindowUpdateFrame:
			if f.StreamID == 0 {
				h.conn += int(f.Increment)
			} else {
				h.stream += int(f.Increment)
			}
		case *http2.SettingsFrame:
			if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
				h.stream += int(v) - (1<<16 - 1)
			}
			if !f.IsAck() {
				err = errors.Join(err, h.fr.WriteSettingsAck())
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				err = errors.Join(err, h.fr.WritePing(true, f.Data))
			}
		case *http2.RSTStreamFrame:
			err = fmt.Errorf("reset: %s", f.ErrCode)
		case *http2.GoAwayFrame:
			err = fmt.Errorf("GOAWAY: %s", f.DebugData())
		case *http2.HeadersFrame:
			if f.StreamEnded() {
				err = errors.New("answered")
			}
		}
		h.ended = err
		h.mu.Unlock()
		select {
		case h.changed <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// room waits until the server takes more, at most n.
func (h *hog) room(ctx context.Context, n int) (int, error) {
	held := time.NewTimer(patience)
	defer held.Stop()
	for {
		h.mu.Lock()
		open, ended := min(n, h.conn, h.stream), h.ended
		if ended == nil && open > 0 {
			h.conn -= open
			h.stream -= open
		}
		h.mu.Unlock()
		switch {
		case ended != nil:
			return 0, ended
		case open > 0:
			return open, nil
		}
		select {
		case <-h.changed:
		case <-held.C:
			return 0, errHeld
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

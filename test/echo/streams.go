package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
)

// healthCheck is a call of the gRPC health service: a message of no bytes.
const (
	healthPath  = "/grpc.health.v1.Health/Check"
	healthCheck = "\x00\x00\x00\x00\x00"
)

// streams makes requests over HTTP/2 without TLS. Nothing is tried twice of which the server
// may have got a part of the body.
type streams struct {
	url     string
	perConn int // 0: no bound
	body    string
	grpc    bool
	client  *http.Client
	used    int
}

func newStreams(u *url.URL, perConn int, body string, grpc bool) *streams {
	s := &streams{url: u.String(), perConn: perConn, body: body, grpc: grpc}
	if grpc {
		to := *u
		to.Path = healthPath
		s.url, s.body = to.String(), healthCheck
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	d := net.Dialer{Timeout: callTimeout}
	s.client = &http.Client{Timeout: callTimeout, Transport: &http.Transport{Protocols: &protocols, DialContext: d.DialContext}}
	return s
}

func (s *streams) close() { s.client.CloseIdleConnections() }

func (s *streams) call() error {
	s.used++
	err := s.exchange()
	if err != nil || s.used == s.perConn {
		s.close()
		s.used = 0
	}
	return err
}

func (s *streams) exchange() error {
	body := &unread{Reader: strings.NewReader(s.body)}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, s.url, body)
	if err != nil {
		return err
	}
	req.GetBody = body.again
	if s.grpc {
		req.Header.Set("Content-Type", "application/grpc")
		req.Header.Set("TE", "trailers")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return errors.New(resp.Status)
	case s.grpc:
		return grpcStatus(resp)
	}
	return nil
}

// unread is a body that net/http may use for another try only while nothing of it was read.
// Clients of gRPC do the same: a connection that ends in good order before a stream begins, or
// before the server takes it, is no failure of the request. net/http closes the body of a
// request for which the connection that it has chosen takes no more streams.
type unread struct {
	*strings.Reader
	read atomic.Bool
}

// Read implements io.Reader.
func (b *unread) Read(p []byte) (int, error) {
	b.read.Store(true)
	return b.Reader.Read(p)
}

// WriteTo implements io.WriterTo, which io.Copy prefers.
func (b *unread) WriteTo(w io.Writer) (int64, error) {
	b.read.Store(true)
	return b.Reader.WriteTo(w)
}

var errRead = errors.New("the body was sent in part")

// again returns the body for another try.
func (b *unread) again() (io.ReadCloser, error) {
	if b.read.Load() {
		return nil, errRead
	}
	return io.NopCloser(b), nil
}

// grpcStatus is in the trailers, or in the headers of a response without a message.
func grpcStatus(resp *http.Response) error {
	code, message := resp.Trailer.Get("Grpc-Status"), resp.Trailer.Get("Grpc-Message")
	if code == "" {
		code, message = resp.Header.Get("Grpc-Status"), resp.Header.Get("Grpc-Message")
	}
	if code != "0" {
		return errors.New("grpc-status " + code + " " + message)
	}
	return nil
}

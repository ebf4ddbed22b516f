package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// healthCheck is a call of the gRPC health service: a message of no bytes.
const (
	healthPath  = "/grpc.health.v1.Health/Check"
	healthCheck = "\x00\x00\x00\x00\x00"
)

// streams makes requests over HTTP/2 without TLS. Nothing is tried twice: the
// bodies cannot be read again.
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
	// A reader of another type is one that net/http cannot read a second time.
	body := struct{ io.Reader }{strings.NewReader(s.body)}
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, s.url, body)
	if err != nil {
		return err
	}
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

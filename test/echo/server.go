package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// greeting is what a server that speaks first says.
const greeting = "220 welcome\n"

func server(ctx context.Context, args []string) error {
	f := flags("server")
	deafAddr := f.String("deaf", "", "address that accepts no connection, and refuses none; empty for none")
	httpAddr := f.String("http", ":8080", "address of the HTTP server; empty for none")
	tcpAddr := f.String("tcp", ":9000", "address of the echo server; empty for none")
	firstAddr := f.String("first", "", "address of the server that speaks first; empty for none")
	tlsAddr := f.String("tls", "", "address of the HTTP server in TLS; empty for none")
	grpcAddr := f.String("grpc", "", "address of a gRPC server that says it is healthy; empty for none")
	checkHTTP := f.String("authorizer-http", "", "address of an external authorizer by HTTP, that allows x-token: letmein; empty for none")
	checkGRPC := f.String("authorizer-grpc", "", "the same by gRPC")
	limiter := f.String("limiter", "", "address of a rate limit service, whose domains end with what each descriptor may have; empty for none")
	host, _ := os.Hostname()
	keys := f.String("keys", "", "what the HTTP server answers to /keys; empty for what it answers elsewhere")
	name := f.String("name", host, "name to answer with")
	_ = f.Parse(args)

	errc := make(chan error, 8)
	listen := func(addr string, serve func(net.Listener) error) error {
		if addr == "" {
			return nil
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { _ = l.Close() })
		go func() { errc <- serve(l) }()
		return nil
	}
	err := errors.Join(
		listen(*deafAddr, func(l net.Listener) error { return serveDeaf(ctx, l) }),
		listen(*firstAddr, func(l net.Listener) error { return serveEcho(l, greeting) }),
		listen(*tlsAddr, func(l net.Listener) error { return serveTLS(l, *name) }),
		listen(*grpcAddr, serveHealth),
		listen(*checkHTTP, serveAuthorizerHTTP),
		listen(*checkGRPC, serveAuthorizerGRPC),
		listen(*limiter, serveLimiter),
		// These are the last, as readiness probes ask them: a pod that is ready answers at all
		// its ports when its probe is for that of the echo server.
		listen(*httpAddr, func(l net.Listener) error { return serveHTTP(l, *name, *keys) }),
		listen(*tcpAddr, func(l net.Listener) error { return serveEcho(l, "") }),
	)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-errc:
		if errors.Is(err, net.ErrClosed) {
			err = nil // closed because ctx ended
		}
		return err
	}
}

func serveHTTP(l net.Listener, name, keys string) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	var connections atomic.Int64
	s := &http.Server{
		Protocols: &protocols,
		ConnState: func(_ net.Conn, state http.ConnState) {
			if state == http.StateNew {
				connections.Add(1)
			}
		},
		// A machine that stands still must not look like a server that hangs up.
		ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if keys != "" && r.URL.Path == "/keys" {
				_, _ = io.WriteString(w, keys)
				return
			}
			if r.URL.Path == "/connections" {
				_, _ = fmt.Fprintln(w, connections.Load())
				return
			}
			host, _, _ := net.SplitHostPort(r.RemoteAddr)
			_, _ = fmt.Fprintf(w, "%s answers %s %s %s\n", name, host, r.Method, r.URL.RequestURI())
			if strings.HasSuffix(r.URL.Path, "/headers") {
				_ = json.NewEncoder(w).Encode(r.Header)
			}
		}),
	}
	return s.Serve(l)
}

func serveHealth(l net.Listener) error {
	s := grpc.NewServer()
	healthpb.RegisterHealthServer(s, health.NewServer())
	return s.Serve(l)
}

// serveEcho gives back what it gets, half-close included.
func serveEcho(l net.Listener, first string) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close() //nolint:errcheck // nothing is left to do about it
			if _, err := io.WriteString(c, first); err != nil {
				return
			}
			_, _ = io.Copy(c, c)
		}()
	}
}

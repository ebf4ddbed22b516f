// Command server is the application of the conformance suite's mesh tests, in place
// of the suite's image echo-advanced: HTTP, HTTPS, gRPC and TCP servers that answer
// with what they have received.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	pb "sigs.k8s.io/gateway-api/conformance/echo-basic/grpcechoserver"
)

// ports is a flag that may be given several times.
type ports []int

func (p *ports) String() string { return "" }

func (p *ports) Set(s string) error {
	n, err := strconv.Atoi(s)
	*p = append(*p, n)
	return err
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "server:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("server", flag.ContinueOnError)
	var web, secure, rpc, raw ports
	f.Var(&web, "port", "port of an HTTP server")
	f.Var(&secure, "tls", "which of these ports are TLS")
	f.Var(&rpc, "grpc", "port of a gRPC server")
	f.Var(&raw, "tcp", "port of a TCP server")
	f.String("crt", "", "ignored: the certificate is made up")
	f.String("key", "", "ignored")
	if err := f.Parse(args); err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	certificate, err := selfSigned(host)
	if err != nil {
		return err
	}
	failed := make(chan error, len(web)+len(rpc)+len(raw))
	listen := func(port int, serve func(net.Listener) error) error {
		l, err := net.Listen("tcp", ":"+strconv.Itoa(port))
		if err != nil {
			return err
		}
		go func() { failed <- serve(l) }()
		return nil
	}
	for _, port := range web {
		serve := func(l net.Listener) error { return serveHTTP(l, host, port) }
		if slices.Contains(secure, port) {
			serve = func(l net.Listener) error {
				return serveHTTP(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}), host, port)
			}
		}
		if err := listen(port, serve); err != nil {
			return err
		}
	}
	for _, port := range rpc {
		if err := listen(port, func(l net.Listener) error { return serveGRPC(l, host) }); err != nil {
			return err
		}
	}
	for _, port := range raw {
		if err := listen(port, func(l net.Listener) error { return serveTCP(l, host) }); err != nil {
			return err
		}
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// serveHTTP answers with the request, one property a line. HTTP/2 without TLS is
// served as well.
func serveHTTP(l net.Listener, host string, port int) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{
		ReadHeaderTimeout: time.Minute, Protocols: &protocols,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ip, _, _ := net.SplitHostPort(r.RemoteAddr)
			_, _ = fmt.Fprintf(w, "ServicePort=%d\nHost=%s\nURL=%s\nMethod=%s\nProto=%s\nIP=%s\nHostname=%s\n", port, r.Host, r.URL.RequestURI(), r.Method, r.Proto, ip, host)
			for _, name := range slices.Sorted(maps.Keys(r.Header)) {
				for _, v := range r.Header[name] {
					_, _ = fmt.Fprintf(w, "RequestHeader=%s:%s\n", name, v)
				}
			}
		}),
	}
	return s.Serve(l)
}

type echo struct {
	pb.UnimplementedGrpcEchoServer
	host string
}

func (e *echo) Echo(ctx context.Context, in *pb.EchoRequest) (*pb.EchoResponse, error) {
	return e.answer(ctx, "Echo", in)
}

func (e *echo) EchoTwo(ctx context.Context, in *pb.EchoRequest) (*pb.EchoResponse, error) {
	return e.answer(ctx, "EchoTwo", in)
}

func (e *echo) answer(ctx context.Context, method string, in *pb.EchoRequest) (*pb.EchoResponse, error) {
	a := &pb.Assertions{
		FullyQualifiedMethod: "/" + pb.GrpcEcho_ServiceDesc.ServiceName + "/" + method, Context: &pb.Context{Pod: e.host},
	}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, name := range slices.Sorted(maps.Keys(md)) {
		for _, v := range md[name] {
			if name == ":authority" {
				a.Authority = v
			}
			a.Headers = append(a.Headers, &pb.Header{Key: name, Value: v})
		}
	}
	return &pb.EchoResponse{Assertions: a, Request: in}, nil
}

func serveGRPC(l net.Listener, host string) error {
	s := grpc.NewServer()
	pb.RegisterGrpcEchoServer(s, &echo{host: host})
	return s.Serve(l)
}

// serveTCP names the pod, then sends back what it receives.
func serveTCP(l net.Listener, host string) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close() //nolint:errcheck // nothing is left to do about it
			if _, err := fmt.Fprintf(c, "Hostname=%s\n", host); err == nil {
				_, _ = io.Copy(c, c)
			}
		}()
	}
}

func selfSigned(host string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

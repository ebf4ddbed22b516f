package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
)

// maxBody bounds what a request may have the server send, in bytes.
const maxBody = 1 << 20

// payload is where bodies are taken from.
var payload = bytes.Repeat([]byte{'x'}, maxBody)

// requestPath is the path of a request for a body of size bytes, and bodyOf reads it.
func requestPath(size int) string { return "/a/" + strconv.Itoa(size) }

func bodyOf(path []byte) int {
	n, err := strconv.Atoi(string(path[bytes.LastIndexByte(path, '/')+1:]))
	if err != nil || n < 0 || n > maxBody {
		return 0
	}
	return n
}

// serveHTTP answers requests without bodies on a connection, of which the first byte was
// read. It looks for the path and the end of heads only: what is measured is what is
// between.
func serveHTTP(c net.Conn) {
	r := bufio.NewReaderSize(c, 8<<10)
	var out []byte
	for {
		size := 0
		for first := true; ; first = false {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			if first {
				if f := bytes.Fields(line); len(f) == 3 {
					size = bodyOf(f[1])
				}
			}
			if len(line) <= len("\r\n") {
				break
			}
		}
		out = append(out[:0], "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: "...)
		out = append(append(strconv.AppendInt(out, int64(size), 10), "\r\n\r\n"...), payload[:size]...)
		if _, err := c.Write(out); err != nil {
			return
		}
	}
}

// httpLoad has every connection make one request after the other.
func httpLoad(o options) (Result, error) { return pingPong(o, false, askHTTP, talks[o.proto]) }

// httpRate is httpLoad at a fixed rate, measured as rate does.
func httpRate(o options) (Result, error) { return pingPong(o, true, askHTTP, talks[o.proto]) }

// httpHold makes one request on each of its connections, says so, and keeps them until
// its input ends.
func httpHold(o options) (Result, error) {
	conns, err := dialAll(o, askHTTP)
	if err != nil {
		return Result{}, err
	}
	var failed failures
	r := Result{Mode: "httphold"}
	for _, c := range conns {
		if err := talks[o.proto](o, c)(); err != nil {
			failed.add(err)
			continue
		}
		r.Held++
	}
	failed.into(&r)
	return r, keep(r, conns)
}

// talks are the protocols of requests.
var talks = map[string]talk{"http": talkHTTP, "h2": talkHTTP2, "grpc": talkGRPC}

var contentLength = []byte("content-length:")

// authorization is the line of a head with the token, "" without one.
func authorization(o options) string {
	if o.token == "" {
		return ""
	}
	return "Authorization: Bearer " + o.token + "\r\n"
}

func talkHTTP(o options, c net.Conn) func() error {
	request := []byte("GET " + requestPath(o.size) + " HTTP/1.1\r\nHost: " + o.addr + "\r\nUser-Agent: load\r\nAccept: */*\r\n" + authorization(o) + "\r\n")
	r := bufio.NewReaderSize(c, 16<<10)
	return func() error {
		if _, err := c.Write(request); err != nil {
			return err
		}
		length := -1
		for first := true; ; first = false {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return err
			}
			line = bytes.TrimRight(line, "\r\n")
			if first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
				return fmt.Errorf("the answer is %q", line)
			}
			if len(line) == 0 {
				break
			}
			if len(line) > len(contentLength) && bytes.EqualFold(line[:len(contentLength)], contentLength) {
				if length, err = strconv.Atoi(string(bytes.TrimSpace(line[len(contentLength):]))); err != nil {
					return err
				}
			}
		}
		if length != o.size {
			return fmt.Errorf("a body of %d bytes", length)
		}
		_, err := r.Discard(length)
		return err
	}
}

// Files of a directory of certificates: of the authority, and one for both ends.
const (
	caFile, certFile, keyFile = "ca.pem", "cert.pem", "key.pem"
	tlsName                   = "bench" // that the certificate is for
)

// tlsConfig is mutual TLS with the certificates of a directory.
var tlsConfig = sync.OnceValues(func() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(tlsDir, certFile), filepath.Join(tlsDir, keyFile))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(tlsDir, caFile))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
		ServerName: tlsName, MinVersion: tls.VersionTLS13,
	}, nil
})

// tlsDir is where the certificates are; "" is no TLS.
var tlsDir string

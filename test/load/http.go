package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
)

// bodySize is that of a response of the server, in bytes.
const bodySize = 1024

var response = append(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", bodySize), bytes.Repeat([]byte{'x'}, bodySize)...)

// serveHTTP answers requests without bodies on a connection, of which the first byte was
// read. It looks for the end of heads only: what is measured is what is between.
func serveHTTP(c net.Conn) {
	r := bufio.NewReaderSize(c, 8<<10)
	for {
		for {
			line, err := r.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) <= len("\r\n") {
				break
			}
		}
		if _, err := c.Write(response); err != nil {
			return
		}
	}
}

// httpEcho has every connection make one request after the other.
func httpEcho(o options) (Result, error) { return pingPong(o, false, askHTTP, talkHTTP) }

// httpRate is httpEcho at a fixed rate, measured as rate does.
func httpRate(o options) (Result, error) { return pingPong(o, true, askHTTP, talkHTTP) }

var contentLength = []byte("content-length:")

func talkHTTP(o options, c net.Conn) func() error {
	request := []byte("GET /a/path HTTP/1.1\r\nHost: " + o.addr + "\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n")
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
		if length != bodySize {
			return fmt.Errorf("a body of %d bytes", length)
		}
		_, err := io.CopyN(io.Discard, r, int64(length))
		return err
	}
}

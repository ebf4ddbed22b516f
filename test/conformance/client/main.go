// Command client makes the requests of the conformance suite's mesh tests: the suite
// runs it in a pod and reads what it prints. It has the flags, and prints the lines,
// that the suite's package echo expects of the program "client".
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "sigs.k8s.io/gateway-api/conformance/echo-basic/grpcechoserver"
)

// timeout bounds one request.
const timeout = 10 * time.Second

// headers is a flag that may be given several times, as name:value.
type headers [][2]string

func (h *headers) String() string { return "" }

func (h *headers) Set(s string) error {
	name, value, ok := strings.Cut(s, ":")
	if !ok {
		return fmt.Errorf("%q is not name:value", s)
	}
	*h = append(*h, [2]string{name, strings.TrimSpace(value)})
	return nil
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

// run makes the requests. The URL comes before the flags.
func run(args []string, out io.Writer) error {
	f := flag.NewFlagSet("client", flag.ContinueOnError)
	method := f.String("method", http.MethodGet, "method of HTTP requests")
	count := f.Int("count", 1, "number of requests")
	var h headers
	f.Var(&h, "H", "header, as name:value; several may be given")
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return fmt.Errorf("no URL: give it first, then the flags")
	}
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	u, err := url.Parse(args[0])
	if err != nil {
		return err
	}
	one := func() ([]string, error) { return overHTTP(u, *method, h) }
	if u.Scheme == "grpc" {
		conn, err := grpc.NewClient(u.Host, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // the program ends
		one = func() ([]string, error) { return overGRPC(conn, h) }
	}
	for i := range *count {
		lines, err := one()
		if err != nil {
			return err
		}
		for _, l := range lines {
			if _, err := fmt.Fprintf(out, "[%d] %s\n", i, l); err != nil {
				return err
			}
		}
		// An empty line ends a response.
		if _, err := fmt.Fprintln(out); err != nil {
			return err
		}
	}
	return nil
}

// overHTTP makes one request, on a connection of its own, and follows no redirect.
func overHTTP(u *url.URL, method string, h headers) ([]string, error) {
	client := &http.Client{
		Timeout: timeout,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // the server's certificate is made up
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	req, err := http.NewRequestWithContext(context.Background(), method, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, e := range h {
		if strings.EqualFold(e[0], "host") {
			req.Host = e[1]
			continue
		}
		req.Header.Add(e[0], e[1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() //nolint:errcheck // read to the end
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	lines := []string{"Url=" + u.String(), fmt.Sprintf("StatusCode=%d", resp.StatusCode)}
	for _, name := range slices.Sorted(maps.Keys(resp.Header)) {
		for _, v := range resp.Header[name] {
			lines = append(lines, "ResponseHeader="+name+":"+v)
		}
	}
	for l := range strings.Lines(string(body)) {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, "body] "+l)
		}
	}
	return lines, nil
}

// overGRPC makes one call. The suite writes the status OK as 200.
func overGRPC(conn *grpc.ClientConn, h headers) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for _, e := range h {
		ctx = metadata.AppendToOutgoingContext(ctx, strings.ToLower(e[0]), e[1])
	}
	var header metadata.MD
	resp, err := pb.NewGrpcEchoClient(conn).Echo(ctx, &pb.EchoRequest{}, grpc.Header(&header))
	code := http.StatusOK
	if c := status.Code(err); c != codes.OK {
		code = int(c)
	}
	lines := []string{fmt.Sprintf("StatusCode=%d", code)}
	if err != nil {
		return append(lines, "Error="+status.Convert(err).Message()), nil
	}
	for _, name := range slices.Sorted(maps.Keys(header)) {
		for _, v := range header[name] {
			lines = append(lines, "ResponseHeader="+name+":"+v)
		}
	}
	a := resp.GetAssertions()
	lines = append(lines, "body] Hostname="+a.GetContext().GetPod(), "body] Host="+a.GetAuthority(), "body] Proto=GRPC")
	for _, e := range a.GetHeaders() {
		lines = append(lines, "body] RequestHeader="+e.GetKey()+":"+e.GetValue())
	}
	return lines, nil
}

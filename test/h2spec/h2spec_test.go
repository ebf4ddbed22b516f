package h2spec

import (
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"

	"github.com/ambit-mesh/ambit/internal/transport/h2"
	"github.com/ambit-mesh/ambit/internal/transport/h2/h2test"
)

// caseTimeout is how long h2spec waits for what it expects. It counts only
// where the engine fails, or where silence is what is expected.
const caseTimeout = 2 * time.Second

// TestServer runs every case of the suite, the strict ones too, each against a
// connection of its own, as a subtest.
func TestServer(t *testing.T) {
	excluded := exclusions(t)
	addr := serve(t)
	cfg := &config.Config{
		Host: addr.IP.String(), Port: addr.Port, Path: "/", Timeout: caseTimeout,
		MaxHeaderLen: 4000, Strict: true,
	}
	ran := 0
	for _, root := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		ran += runGroup(t, cfg, root, excluded)
	}
	// The suite has 146 cases; fewer mean that this test lost some.
	if ran+len(excluded) < 146 {
		t.Errorf("only %d cases ran", ran)
	}
	for id := range excluded {
		t.Errorf("EXCLUSIONS.md names %s, which does not exist", id)
	}
}

// runGroup runs a group and what is below it, and counts the cases.
func runGroup(t *testing.T, cfg *config.Config, g *spec.TestGroup, excluded map[string]bool) int {
	ran := 0
	for i, tc := range append(g.Tests, g.StrictTests...) {
		id := fmt.Sprintf("%s/%d", g.ID(), i+1)
		if excluded[id] {
			delete(excluded, id)
			continue
		}
		ran++
		t.Run(id, func(t *testing.T) {
			conn, err := spec.Dial(cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if err := tc.Run(cfg, conn); err != nil {
				t.Errorf("%s\n%s\n%v", tc.Desc, tc.Requirement, err)
			}
		})
	}
	for _, sub := range g.Groups {
		ran += runGroup(t, cfg, sub, excluded)
	}
	return ran
}

// exclusions reads the list items of EXCLUSIONS.md that begin with the id of
// a case in backquotes.
func exclusions(t *testing.T) map[string]bool {
	text, err := os.ReadFile("EXCLUSIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "- `"); ok {
			id, _, _ := strings.Cut(rest, "`")
			ids[id] = true
		}
	}
	return ids
}

// serve answers every HTTP/2 request on a loopback address, without TLS and
// with prior knowledge, until the test ends.
func serve(t *testing.T) *net.TCPAddr {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			d := h2test.Start(nc, h2.Config{Server: true}, func(c *h2.Conn) h2.Handler {
				return &h2test.Responder{Conn: c, Body: []byte("ambit")}
			})
			conns.Go(func() { <-d.Done() })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		conns.Wait()
	})
	return l.Addr().(*net.TCPAddr)
}

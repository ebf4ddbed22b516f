package scenario

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/internal/transport/record"
	"github.com/ambit-mesh/ambit/test/rig"
)

// TestRecordLayers: a proxy that leaves records to crypto/tls (AMBIT_RECORD_LAYER) and
// one that does not understand each other, both ways and in bulk. Peers that break
// records, with a certificate of the mesh, end their own tunnel and nothing else.
func TestRecordLayers(t *testing.T) {
	world := rig.Start(t, lab.Config{
		YAML: shop + outlawPod + rig.ServerObject("shop", "other", "node2", ""),
		Env:  map[string][]string{"ztunnel/node1": {"AMBIT_RECORD_LAYER=false"}},
	})
	for node, library := range map[string]bool{"node1": true, "node2": false} {
		b, err := world.Admin(t.Context(), "ztunnel/"+node, "/config_dump")
		if err != nil {
			t.Fatal(err)
		}
		var d struct {
			Config struct{ LibraryRecords *bool }
		}
		if err := json.Unmarshal(b, &d); err != nil || d.Config.LibraryRecords == nil || *d.Config.LibraryRecords != library {
			t.Errorf("%s: libraryRecords is not %v in its dump, %v", node, library, err)
		}
	}
	rig.Families(t, func(t *testing.T, v6 bool) {
		w := world.For(t)
		web, other := netip.AddrPortFrom(w.Pod("shop", "web", v6), 9000), netip.AddrPortFrom(w.Pod("shop", "other", v6), 9000)
		bulk(w, far, web)
		bulk(w, near, other)
		held := w.MustHold(near, other)
		for name, send := range map[string]func(c *record.Conn) ([]byte, error){
			"forged": func(c *record.Conn) ([]byte, error) {
				p := c.Append(nil, []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
				p[len(p)-1] ^= 1
				return p, nil
			},
			"key updates for ever": func(c *record.Conn) (p []byte, err error) {
				for range 1000 {
					if p, err = c.Control(p); err != nil {
						break
					}
				}
				return p, err
			},
			"plaintext": func(*record.Conn) ([]byte, error) { return bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 1000), nil },
			"half":      func(c *record.Conn) ([]byte, error) { return c.Append(nil, make([]byte, 9000))[:5000], nil },
		} {
			conn, c := w.Keys(outlaw, netip.AddrPortFrom(other.Addr(), 15008), w.Bundle(farID))
			p, err := send(c)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write(p) // the proxy may end the connection meanwhile
			if name == "half" {
				_ = conn.(interface{ CloseWrite() error }).CloseWrite()
			}
			if _, err := io.Copy(io.Discard, conn); isTimeout(err) {
				t.Errorf("%s: the tunnel goes on", name)
			}
			_ = conn.Close()
		}
		if err := held.Ping(); err != nil {
			t.Errorf("a connection of somebody else: %v", err)
		}
		bulk(w, near, other)
	})
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// bulk sends a few megabytes to an echo server, and wants them back.
func bulk(w *rig.World, from lab.Where, to netip.AddrPort) {
	w.T().Helper()
	c := w.MustDial(from, to)
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	want := make([]byte, 5<<20)
	_, _ = rand.Read(want)
	go func() { _, _ = c.Write(want) }()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		w.T().Errorf("from %s to %s: %d bytes of %d came back, %v", from, to, n, len(want), err)
	}
}

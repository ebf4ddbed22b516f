package scenario

import (
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/internal/lab"
	"github.com/ambit-mesh/ambit/test/rig"
)

func TestZZFull(t *testing.T) {
	w := rig.Start(t, lab.Config{YAML: shop, Env: map[string][]string{"ztunnel": {"RUST_LOG=warn"}}})
	rng := func(in lab.Where, s string) {
		if err := w.Netns(in).Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(s), 0) }); err != nil {
			t.Fatal(err)
		}
	}
	rng(far, "1024 65535")
	rng(web, "40000 45999")
	to := netip.AddrPortFrom(w.Pod("shop", "web", false), 9000)
	ns := w.Netns(far)
	dial := func() (c net.Conn, err error) {
		err = ns.Do(func() error { c, err = net.DialTimeout("tcp", to.String(), 20*time.Second); return err })
		return
	}
	var held []net.Conn
	bad := 0
	b := make([]byte, 1)
	began := time.Now()
	for i := range 8000 {
		c, err := dial()
		if err == nil {
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			_, err = io.WriteString(c, "x")
		}
		if err == nil {
			_, err = io.ReadFull(c, b)
		}
		if err != nil {
			if bad++; bad < 3 {
				t.Logf("%d: %v", i, err)
			}
			continue
		}
		held = append(held, c)
		if i%1000 == 999 {
			t.Logf("%d held, %d failed, the last 1000 took %v", len(held), bad, time.Since(began))
			began = time.Now()
		}
	}
	for _, c := range held {
		_ = c.Close()
	}
	rng(web, "32768 60999")
	var ok, failed atomic.Int64
	var wg sync.WaitGroup
	work := make(chan struct{}, 1000)
	for range 32 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range work {
				b := make([]byte, 1)
				c, err := dial()
				if err == nil {
					_ = c.SetDeadline(time.Now().Add(30 * time.Second))
					_, err = io.WriteString(c, "x")
				}
				if err == nil {
					_, err = io.ReadFull(c, b)
				}
				if err == nil {
					_ = c.(*net.TCPConn).CloseWrite()
					if _, err = c.Read(b); err == io.EOF {
						err = nil
					}
				}
				if c != nil {
					_ = c.Close()
				}
				if err != nil {
					if failed.Add(1) < 5 {
						t.Log(err)
					}
				} else {
					ok.Add(1)
				}
			}
		}()
	}
	began = time.Now()
	for i := range 480 * 70 {
		if d := time.Until(began.Add(time.Duration(i) * time.Second / 480)); d > 0 {
			time.Sleep(d)
		}
		work <- struct{}{}
		if i%4800 == 0 {
			t.Logf("%v: ok %d failed %d", time.Since(began), ok.Load(), failed.Load())
		}
	}
	close(work)
	wg.Wait()
	t.Logf("%v: ok %d failed %d", time.Since(began), ok.Load(), failed.Load())
	_ = w
}

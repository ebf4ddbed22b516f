package exchange_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/internal/l7/exchange/pool"
	"github.com/ambit-mesh/ambit/internal/transport/stream/streamtest"
)

// TestCutStreamsReachNoOther: requests of many clients are cut at random places, by clients
// and by the backend, and the memory of their streams is used for others at once. What a
// backend gets of a request is of that request, and so is what a client gets of a response.
func TestCutStreamsReachNoOther(t *testing.T) {
	m := newMemory(t, toB(), func() func(int) int { return streamtest.Cuts(7, 1, 3000) }, func(w *world, _ *configs, _ *pool.Config) { w.h2, w.h2up = true, true })
	m.serveHTTP(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mark := r.Header.Get("X-Mark")
		if mark != r.URL.Path[1:] {
			t.Errorf("a request to %s has the field of %s", r.URL.Path, mark)
		}
		rw.Header().Set("X-Mark", mark)
		buf := make([]byte, 700)
		for n := 0; ; n++ {
			k, err := r.Body.Read(buf)
			if rest := bytes.ReplaceAll(buf[:k], []byte(mark), nil); len(bytes.Trim(rest, mark)) > 0 {
				t.Errorf("request %s got %q", mark, rest)
			}
			if _, werr := rw.Write(buf[:k]); err != nil || werr != nil {
				return
			}
			if n == 3 && r.Header.Get("X-Cut") != "" {
				panic(http.ErrAbortHandler)
			}
		}
	}), cleartext2())
	var wg sync.WaitGroup
	whole := 0
	var mu sync.Mutex
	for client := range 8 {
		c := m.client(cleartext2())
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(client), 3))
			for i := range 120 {
				mark := fmt.Sprintf("c%dr%d-", client, i)
				sent := bytes.Repeat([]byte(mark), 1+r.IntN(2000))
				ctx, cancel := context.WithCancel(context.Background())
				from := io.Reader(bytes.NewReader(sent))
				how := r.IntN(4)
				if how == 1 { // the client cuts while it sends
					from = io.MultiReader(bytes.NewReader(sent[:r.IntN(len(sent))]), &cutting{cancel})
				}
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://h/"+mark, from)
				if err != nil {
					t.Error(err)
				}
				req.Header.Set("X-Mark", mark)
				if how == 2 {
					req.Header.Set("X-Cut", "1")
				}
				resp, err := c.Do(req)
				if err != nil {
					cancel()
					continue
				}
				if how == 3 { // while it receives
					_, _ = io.CopyN(io.Discard, resp.Body, int64(r.IntN(len(sent))))
					cancel()
				}
				got, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				cancel()
				if at := resp.Header.Get("X-Mark"); resp.StatusCode == http.StatusOK && at != mark {
					t.Errorf("request %s got the response of %s", mark, at)
				}
				if how != 3 && resp.StatusCode == http.StatusOK && !bytes.HasPrefix(sent, got) {
					t.Errorf("request %s got %d other bytes", mark, len(got))
				}
				if how == 0 {
					if err != nil || len(got) != len(sent) {
						t.Errorf("request %s, which nothing cut: %d bytes of %d, %v", mark, len(got), len(sent), err)
					}
					mu.Lock()
					whole++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	m.idle()
	if whole == 0 {
		t.Error("no request was whole")
	}
}

// cutting cancels a request when its body is read this far.
type cutting struct{ cancel func() }

func (c *cutting) Read([]byte) (int, error) {
	c.cancel()
	return 0, io.ErrUnexpectedEOF
}

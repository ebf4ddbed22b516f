package admin

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/ops/logging"
)

func TestLogging(t *testing.T) {
	logs, err := logging.New(io.Discard, logging.Plain, "info")
	if err != nil {
		t.Fatal(err)
	}
	logs.Logger("access")
	h := Logging(logs.Levels)
	for _, tc := range []struct {
		method, target string
		code           int
		body           string
	}{
		{"POST", "/logging", 200, "info\n"},
		{"POST", "/logging?level=access=debug", 200, "info,access=debug\n"},
		{"POST", "/logging?level=chatty", 400, "none of off"},
		{"POST", "/logging?level=acess=warn", 400, "no log scope \"acess\"; the scopes are access"},
		{"POST", "/logging?level=warn,acess=debug", 400, "no log scope"},
		{"POST", "/logging", 200, "is info,access=debug\n"},
		{"POST", "/logging?reset", 200, "is info\n"},
		{"GET", "/logging", 405, "use POST"},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tc.method, tc.target, nil))
		if w.Code != tc.code || !strings.Contains(w.Body.String(), tc.body) {
			t.Errorf("%s %s: %d %q", tc.method, tc.target, w.Code, w.Body)
		}
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, ln, JSON(func() any { return map[string]int{"n": 1} })) }()
	resp, err := http.Get("http://" + ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if !strings.Contains(string(body), `"n": 1`) {
		t.Errorf("%s", body)
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

package metrics

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHandler(t *testing.T) {
	w := httptest.NewRecorder()
	Handler(NewRegistry("ztunnel")).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{`istio_build{component="ztunnel",tag="dev"} 1`, "process_resident_memory_bytes", "go_goroutines"} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("no %s", want)
		}
	}
}

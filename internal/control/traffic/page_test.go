package traffic

import (
	"os"
	"strings"
	"testing"
)

// TestPage: the page has a row for each field that acts.
func TestPage(t *testing.T) {
	page, err := os.ReadFile("../../../docs/tcp-traffic.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Honoured() {
		if !strings.Contains(string(page), "`"+f+"`") {
			t.Errorf("docs/tcp-traffic.md does not have %s", f)
		}
	}
	if rows := strings.Count(string(page), "\n| `trafficPolicy."); rows != len(Honoured())-2 {
		t.Errorf("the page has %d fields of trafficPolicy, and %d act", rows, len(Honoured())-2)
	}
}

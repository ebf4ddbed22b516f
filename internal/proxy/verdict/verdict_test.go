package verdict

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
	"github.com/ambit-mesh/ambit/internal/mesh/reason"
)

func TestQuestion(t *testing.T) {
	yes, no := true, false
	for _, q := range []Question{
		{},
		{Direction: Outbound, Pod: "shop/client", To: "svc/web.shop:80"},
		{
			Direction: Inbound, Pod: "shop/web", Tunnel: true, Authority: "10.0.0.1:80", Service: "web.shop.svc", HTTP: &no,
			Identity: identity.Identity{TrustDomain: "td", Namespace: "shop", ServiceAccount: "client"}, Source: netip.MustParseAddr("fd00::1"),
		},
		{Authority: "[fd00::1]:80", HTTP: &yes, Method: "PUT", Path: "/a?b=c&d", Host: "a.com:80", Headers: []Header{{"x-a", "1: 2"}, {"x-a", ""}, {"cookie", "a=b; c=d"}}},
	} {
		got, err := Parse(q.Values())
		if err != nil || !reflect.DeepEqual(got, q) {
			t.Errorf("%+v becomes %+v, error %v", q, got, err)
		}
	}
}

func TestBadQuestions(t *testing.T) {
	for query, want := range map[string]string{
		"nothing=1":                        `parameter "nothing"`,
		"pod=a/b&pod=c/d":                  "parameter pod is given 2 times",
		"tunnel=perhaps":                   `tunnel "perhaps": there are true and false`,
		"http=1":                           `http "1": there are true and false`,
		"identity=x":                       "identity: ",
		"source=x":                         "source: ",
		"header=x":                         `header "x" is not NAME:VALUE`,
		"header=:x":                        `header ":x" is not NAME:VALUE`,
		strings.Repeat("header=a:b&", 129): "129 headers: at most 128",
	} {
		v, err := url.ParseQuery(strings.TrimSuffix(query, "&"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Parse(v); !errors.Is(err, ErrQuestion) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: %v, want %s", query, err, want)
		}
	}
	for _, pod := range []string{"", "a", "a/", "/b"} {
		if _, _, err := (&Question{Pod: pod}).PodName(); !errors.Is(err, ErrQuestion) {
			t.Errorf("%q: %v", pod, err)
		}
	}
}

// FuzzParse: no query makes a crash, and what is accepted survives the way back.
func FuzzParse(f *testing.F) {
	f.Add("direction=outbound&pod=a/b&to=c:80&header=x:y&identity=spiffe://td/ns/a/sa/b&source=10.0.0.1")
	f.Fuzz(func(t *testing.T, query string) {
		v, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		q, err := Parse(v)
		if err != nil {
			return
		}
		if again, err := Parse(q.Values()); err != nil || !reflect.DeepEqual(again, q) {
			t.Fatalf("%+v becomes %+v, error %v", q, again, err)
		}
	})
}

func TestHandler(t *testing.T) {
	asked := 0
	h := Handler(func(_ context.Context, q Question) (*Verdict, error) {
		asked++
		switch q.To {
		case "unknown":
			return nil, ErrUnknown
		case "bad":
			return nil, ErrDirection
		case "broken":
			return nil, errors.New("broken")
		}
		return New(RoleClient).Refuse(reason.Errorf(reason.NoRoute, "nowhere")), nil
	})
	for _, tt := range []struct {
		method, query string
		status        int
	}{
		{"GET", "to=web", 200}, {"GET", "to=unknown", 404}, {"GET", "to=bad", 400}, {"GET", "to=broken", 503}, {"GET", "no=1", 400}, {"GET", "a=%zz", 400},
		{"POST", "to=web", 405}, {"DELETE", "to=web", 405},
	} {
		before := asked
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(tt.method, Path+"?"+tt.query, nil))
		if w.Code != tt.status {
			t.Errorf("%s %s: %d %s", tt.method, tt.query, w.Code, w.Body)
		}
		if tt.method != http.MethodGet && asked != before {
			t.Errorf("%s is answered", tt.method)
		}
		if v := (&Verdict{}); tt.status == 200 {
			if err := json.Unmarshal(w.Body.Bytes(), v); err != nil || v.Allowed || v.Reason != "NO_ROUTE" || v.Detail != "no route matches the request: nowhere" {
				t.Errorf("%+v, error %v", v, err)
			}
		}
	}
}

func TestPolicyObject(t *testing.T) {
	for key, want := range map[string]string{
		"istio-system/istio_converted_static_strict": "PeerAuthentication (mode STRICT)",
		"shop/converted_peer_authentication_ports":   "PeerAuthentication shop/ports",
		"shop/ambit_waypoint_0123456789abcdef":       "waypoint of the destination",
		"shop/readers":                               "AuthorizationPolicy shop/readers",
	} {
		got, derived := PolicyObject(key)
		if got != want || (derived == nil) != strings.HasPrefix(want, "Auth") {
			t.Errorf("%s: %q %+v", key, got, derived)
		}
	}
}

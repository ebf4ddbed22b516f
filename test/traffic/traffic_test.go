package traffic

import (
	"net/netip"
	"strings"
	"testing"
)

func TestReports(t *testing.T) {
	const lines = `{"sent":3,"ok":3,"p50us":10,"p99us":90,"maxus":95}
{"sent":4,"ok":3,"failed":1,"p50us":30,"p99us":70,"maxus":71,"errors":{"EOF":1}}
{"sent":5,"ok":5,"p50us":20,"p99us":80,"maxus":81}
{"final":true,"sent":12,"ok":11,"failed":1,"maxus":95,"errors":{"EOF":1},"first":["09:00: EOF"]}
`
	all, err := Reports(strings.NewReader(lines)).All()
	if err != nil || len(all) != 4 {
		t.Fatalf("%d reports, error %v", len(all), err)
	}
	if last := all[3]; !last.Final || last.P50 != 20 || last.P99 != 80 || last.Max != 95 {
		t.Errorf("the last one is %+v", last)
	}
	if sum := Total(all); sum.Sent != 12 || sum.OK != 11 || sum.Failed != 1 || sum.Errors["EOF"] != 1 || sum.Max != 95 {
		t.Errorf("the sum is %+v", sum)
	}
	if err := all[3].Clean(); err == nil || !strings.Contains(err.Error(), "09:00: EOF") {
		t.Errorf("with a failure: %v", err)
	}
	if err := all[0].Clean(); err != nil {
		t.Errorf("without failures: %v", err)
	}
	if (Report{}).Clean() == nil {
		t.Error("a load without requests is clean")
	}
	if all, err := Reports(strings.NewReader(lines[:100])).All(); err == nil || len(all) != 1 {
		t.Errorf("a line that is cut: %d reports, error %v", len(all), err)
	}
}

func TestResponses(t *testing.T) {
	all, err := Responses(`{"status":200,"body":"v1 answers ::ffff:10.0.0.7 GET /headers\n{\"X-A\":[\"b\"]}\n"}
{"status":403,"body":"RBAC: access denied"}
{"error":"connection refused"}
`)
	if err != nil || len(all) != 3 {
		t.Fatalf("%d responses, error %v", len(all), err)
	}
	if a, err := all[0].Answer(); err != nil || a != (Answer{"v1", netip.MustParseAddr("10.0.0.7")}) {
		t.Errorf("%+v, error %v", a, err)
	}
	if h, err := all[0].Request(); err != nil || h.Get("x-a") != "b" {
		t.Errorf("%v, error %v", h, err)
	}
	for _, r := range all[1:] {
		if a, err := r.Answer(); err == nil {
			t.Errorf("%+v is read as the answer %+v", r, a)
		}
	}
	for _, text := range []string{"x", "{", `{"status":"200"}`} {
		if _, err := Responses(text); err == nil {
			t.Errorf("%q is read", text)
		}
	}
	for _, body := range []string{"", "v1 answers", "v1 answers a client", "v1 calls 10.0.0.1"} {
		if _, err := ParseAnswer(body); err == nil {
			t.Errorf("%q is read", body)
		}
	}
}

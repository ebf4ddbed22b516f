package extauthz_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
)

func structOf(t testing.TB, m map[string]any) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// answer returns what an answer with metadata means.
func answer(t testing.TB, code int32, s *structpb.Struct) extauthz.Verdict {
	a := &extauthz.Answer{Head: response(200), Trailers: response(0, "grpc-status", "0")}
	a.Body = frame(t, &authv3.CheckResponse{Status: &status.Status{Code: code}, DynamicMetadata: s})
	return provider(t, nil).Read(a)
}

// TestMetadata: the metadata of an answer is found by its keys, and that of a later answer takes
// the place of the same keys.
func TestMetadata(t *testing.T) {
	v := answer(t, 0, structOf(t, map[string]any{
		"user": "ann \"x\"", "score": 7.0, "ok": true, "none": nil, "org": map[string]any{"team": "books", "list": []any{"a", 1.0}}, "nan": math.NaN(), "empty": "",
	}))
	if v.Outcome != extauthz.Allowed {
		t.Fatal(v.Err)
	}
	m := v.Metadata.With(nil)
	for path, want := range map[string]string{
		"user": `ann "x"`, "score": "7", "ok": "true", "none": "", "org:team": "books", "org": `{"list":["a",1],"team":"books"}`, "org:list": `["a",1]`, "nan": `"NaN"`, "empty": "",
		"other": "", "user:x": "", "org:list:0": "", "org:team:x": "",
	} {
		if got := string(m.Append([]byte("."), strings.Split(path, ":"))); got != "."+want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	later := answer(t, 7, structOf(t, map[string]any{"user": "bob"}))
	if later.Outcome != extauthz.Denied {
		t.Fatal(later.Err)
	}
	both := m.With(later.Metadata)
	if got := fmt.Sprintf("%v %v %v", both.Values()["user"], both.Values()["score"], m.Values()["user"]); got != `bob 7 ann "x"` {
		t.Error(got)
	}
	var none *extauthz.Metadata
	if len(none.Append(nil, nil)) > 0 || none.Values() == nil || none.With(nil) != nil || answer(t, 0, nil).Metadata != nil {
		t.Error("there is something in nothing")
	}
}

// TestMetadataIsBounded: an answer that allows with too much metadata is refused, and one
// that denies denies without it.
func TestMetadataIsBounded(t *testing.T) {
	deep := map[string]any{}
	for range 40 {
		deep = map[string]any{"a": deep}
	}
	for what, s := range map[string]*structpb.Struct{"large": structOf(t, map[string]any{"a": strings.Repeat("x", 9000)}), "deep": structOf(t, deep)} {
		if v := answer(t, 0, s); v.Outcome != extauthz.Invalid || v.Err == nil || v.Metadata != nil {
			t.Errorf("%s: %v %v", what, v.Outcome, v.Err)
		}
		if v := answer(t, 7, s); v.Outcome != extauthz.Denied || v.Metadata != nil {
			t.Errorf("%s: %v %v", what, v.Outcome, v.Err)
		}
	}
}

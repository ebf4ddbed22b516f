package ending

import (
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

func TestOf(t *testing.T) {
	for _, tc := range []struct {
		asked, ready bool
		want         Phase
	}{{false, false, None}, {false, true, None}, {true, true, Serving}, {true, false, Closing}} {
		if got := Of(tc.asked, tc.ready); got != tc.want {
			t.Errorf("asked %v, ready %v: %v, and not %v", tc.asked, tc.ready, got, tc.want)
		}
	}
}

// TestWire: each phase arrives as it was sent. What cannot be read gets no connections.
func TestWire(t *testing.T) {
	for _, p := range []Phase{None, Serving, Closing} {
		if got := FromExtensions(p.Extensions()); got != p || p.Begun() != (p != None) {
			t.Errorf("%v arrives as %v, begun %v", p, got, p.Begun())
		}
	}
	if got := None.String() + Serving.String() + Closing.String(); got != "SERVINGCLOSING" {
		t.Errorf("names %q", got)
	}
	if None.Extensions() != nil {
		t.Error("a workload that does not end has an extension")
	}
	text := func(s string) *anypb.Any { a, _ := anypb.New(wrapperspb.String(s)); return a }
	number, _ := anypb.New(wrapperspb.UInt32(1))
	const name = wellknown.ExtensionEnding
	for what, all := range map[string][]*workloadpb.Extension{
		"no configuration": {{Name: name}},
		"another type":     {{Name: name, Config: number}},
		"garbage":          {{Name: name, Config: &anypb.Any{TypeUrl: text("").TypeUrl, Value: []byte{0xff}}}},
		"the future":       {{Name: name, Config: text("LATER")}},
		"two":              {{Name: name, Config: text("CLOSING")}, {Name: name, Config: text("SERVING")}},
		"two, turned":      {{Name: name, Config: text("SERVING")}, {Name: name, Config: text("CLOSING")}},
	} {
		if got := FromExtensions(all); got != Closing {
			t.Errorf("%s: %v", what, got)
		}
	}
	if got := FromExtensions([]*workloadpb.Extension{nil, {Name: "another"}}); got != None {
		t.Errorf("extensions of others: %v", got)
	}
}

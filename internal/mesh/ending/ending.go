// Package ending is how far the end of a workload has come, and how that travels from the
// control plane to proxies.
package ending

import (
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Phase is how far the end of a workload has come.
type Phase uint8

// The phases, in their order.
const (
	None    Phase = iota // it is not about to end
	Serving              // it is about to end, and takes connections until then
	Closing              // it is about to end, and is not ready for connections
)

// texts are the phases on the wire. Closing is what the extension means without a text.
var texts = map[Phase]string{Serving: "SERVING", Closing: "CLOSING"}

// Of returns the phase of a pod: whether its end was asked for, and whether it is ready.
func Of(asked, ready bool) Phase {
	switch {
	case !asked:
		return None
	case ready:
		return Serving
	}
	return Closing
}

// String returns the phase as it is on the wire, and nothing for None.
func (p Phase) String() string { return texts[p] }

// Begun reports whether the workload is about to end.
func (p Phase) Begun() bool { return p != None }

// Extensions returns how the phase of a workload travels: as an extension, which proxies
// of others pass over. To those the workload is not healthy, as it is in Istio. A workload
// that is not about to end has no extension.
func (p Phase) Extensions() []*workloadpb.Extension {
	if p == None {
		return nil
	}
	config, err := anypb.New(wrapperspb.String(texts[p]))
	if err != nil {
		config = nil // no text can fail to be marshalled; without one it is Closing
	}
	return []*workloadpb.Extension{{Name: wellknown.ExtensionEnding, Config: config}}
}

// FromExtensions reads the phase of a workload. What cannot be read, or comes from the
// future, is Closing; of several, the last phase counts.
func FromExtensions(all []*workloadpb.Extension) Phase {
	last := None
	for _, e := range all {
		if e.GetName() != wellknown.ExtensionEnding {
			continue
		}
		text := &wrapperspb.StringValue{}
		if e.GetConfig().UnmarshalTo(text) != nil || text.GetValue() != texts[Serving] {
			return Closing
		}
		last = Serving
	}
	return last
}

package egress

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Extensions returns how the mode of a workload travels: as an extension, which other
// proxies pass over. AllowAny has none.
func (m Mode) Extensions() []*workloadpb.Extension {
	if m == AllowAny {
		return nil
	}
	// Made here, it marshals.
	config := &anypb.Any{TypeUrl: "type.googleapis.com/google.protobuf.StringValue"}
	config.Value, _ = proto.MarshalOptions{Deterministic: true}.Marshal(wrapperspb.String(m.String()))
	return []*workloadpb.Extension{{Name: wellknown.ExtensionOutbound, Config: config}}
}

// FromExtensions reads the mode of a workload. What cannot be read, or comes from the
// future, is RegistryOnly; of several, the strictest counts.
func FromExtensions(all []*workloadpb.Extension) Mode {
	strictest := AllowAny
	for _, e := range all {
		if e.GetName() != wellknown.ExtensionOutbound {
			continue
		}
		text := &wrapperspb.StringValue{}
		if e.GetConfig().UnmarshalTo(text) != nil {
			return RegistryOnly
		}
		m, _ := Parse(text.GetValue())
		strictest = max(strictest, m)
	}
	return strictest
}

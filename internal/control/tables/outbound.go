package tables

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	workloadpb "github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/mesh/egress"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// confine gives a workload its outbound traffic policy. Without one it has no extension,
// and its resource is what it was before there were such policies.
func (t *Tables) confine(r *collection.Reader, w *workloadpb.Workload, home Space, annotations map[string]string) {
	mesh, _ := collection.Fetch(r, t.outbound, struct{}{})
	ns, _ := collection.Fetch(r, t.Namespaces, home)
	m := egress.Effective(mesh, ns.outbound, egress.Of(annotations, wellknown.AnnotationOutbound))
	if m == egress.AllowAny {
		return
	}
	// Made here, it marshals.
	config := &anypb.Any{TypeUrl: "type.googleapis.com/google.protobuf.StringValue"}
	config.Value, _ = proto.MarshalOptions{Deterministic: true}.Marshal(wrapperspb.String(m.String()))
	w.Extensions = append(w.Extensions, &workloadpb.Extension{Name: wellknown.ExtensionOutbound, Config: config})
}

package tables

import (
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
	w.Extensions = append(w.Extensions, m.Extensions()...)
}

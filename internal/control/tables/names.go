package tables

import (
	"cmp"
	"strings"

	"github.com/ambit-mesh/ambit/internal/source"
)

// Ref names an object.
type Ref = source.Ref

// Space names an object of cluster scope.
type Space = source.Space

// Host is a host name as the objects of a namespace have it. It is of no
// cluster: what several clusters have under it is one service.
type Host struct{ Namespace, Hostname string }

// String renders namespace/hostname, which is the name of the service's
// resource.
func (h Host) String() string { return h.Namespace + "/" + h.Hostname }

// Compare orders by namespace, then host name.
func (h Host) Compare(o Host) int {
	return cmp.Or(strings.Compare(h.Namespace, o.Namespace), strings.Compare(h.Hostname, o.Hostname))
}

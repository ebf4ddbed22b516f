// Package install puts the mesh into a Kubernetes cluster, replaces it by
// another version and takes it out again: it renders the Helm charts, applies
// the objects on the server's side in an order that works, waits until they
// are ready and says why they are not, and removes what it no longer wants.
package install

import "github.com/ambit-mesh/ambit/internal/mesh/wellknown"

// FieldManager is who applies, in the managedFields of objects.
const FieldManager = "ambit-install"

// Labels that objects of the mesh carry. The charts set all but managedBy.
const (
	labelPartOf    = "app.kubernetes.io/part-of"
	labelVersion   = "app.kubernetes.io/version"
	labelRevision  = "istio.io/rev"
	labelManagedBy = "app.kubernetes.io/managed-by"

	labelPodSecurity      = "pod-security.kubernetes.io/enforce"
	podSecurityPrivileged = "privileged"

	partOf       = "ambit"
	managedByUs  = "ambit-install"
	helmRelease  = "meta.helm.sh/release-name"
	helmRelSpace = "meta.helm.sh/release-namespace"
)

// Component is a part of the mesh with a chart of its own.
type Component string

// The components.
const (
	Base    Component = "base"
	Ambitd  Component = "ambitd"
	CNI     Component = "cni"
	Ztunnel Component = "ztunnel"
	// Observability is what others show of the mesh: boards, alert rules, monitors.
	Observability Component = "observability"
)

// phases is what is applied together and then waited for: kinds before what
// reads them, and the control plane before those who need its certificates.
var phases = [][]Component{{Base}, {Ambitd}, {CNI, Ztunnel}, {Observability}}

// release is the name that a component's chart is rendered under.
var release = map[Component]string{Base: "ambit-base", Ambitd: "ambitd", CNI: "ambit-cni", Ztunnel: "ztunnel", Observability: "ambit-observability"}

// suffix is what names of a revision's objects end in.
func suffix(revision string) string {
	if revision == "" || revision == wellknown.DefaultRevision {
		return ""
	}
	return "-" + revision
}

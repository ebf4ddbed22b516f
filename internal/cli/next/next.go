// Package next suggests the next command: kubectl's and ours for a cluster, or those of
// a lab.
package next

import (
	"fmt"

	"github.com/ambit-mesh/ambit/internal/cli/session"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Commands are the commands that a person can type next.
type Commands interface {
	// Enrol brings the pods of a namespace into the mesh.
	Enrol(namespace string) string
	// Pods lists those that a selector chooses.
	Pods(namespace, selector string) string
	// Where lists the pods of a part of the mesh, Logs prints what one of them
	// (or all of them, with the name empty) has logged.
	Where(p session.Part) string
	Logs(p session.Part, pod string) string
	// Gateway shows a Gateway.
	Gateway(namespace, name string) string
	// Check looks at what the mesh needs.
	Check() string
	// Also is what has to stand behind ambit's own commands.
	Also() string
}

// Kubectl is for a cluster, whose mesh lives in a namespace.
type Kubectl struct{ Root string }

// Enrol implements Commands.
func (Kubectl) Enrol(namespace string) string {
	return fmt.Sprintf("kubectl label namespace %s %s=%s", namespace, wellknown.LabelDataplaneMode, wellknown.DataplaneModeAmbient)
}

// Pods implements Commands.
func (Kubectl) Pods(namespace, selector string) string {
	return fmt.Sprintf("kubectl get pods -n %s -l '%s'", namespace, selector)
}

// Where implements Commands.
func (k Kubectl) Where(p session.Part) string {
	return fmt.Sprintf("kubectl get pods -n %s -l %s -o wide", k.Root, p.Selector)
}

// Logs implements Commands.
func (k Kubectl) Logs(p session.Part, pod string) string {
	if pod == "" {
		pod = "-l " + p.Selector
	}
	return fmt.Sprintf("kubectl logs -n %s %s", k.Root, pod)
}

// Gateway implements Commands.
func (Kubectl) Gateway(namespace, name string) string {
	return fmt.Sprintf("kubectl describe gateway %s -n %s", name, namespace)
}

// Check implements Commands.
func (Kubectl) Check() string { return "ambit check" }

// Also implements Commands.
func (Kubectl) Also() string { return "" }

// Lab is for a lab. Name is the argument that names it for `ambit lab`, and Flag that
// for other commands. Both begin with a space, or are empty.
type Lab struct{ Name, Flag string }

// Enrol implements Commands.
func (l Lab) Enrol(namespace string) string {
	return fmt.Sprintf("ambit lab label namespace %s %s=%s%s", namespace, wellknown.LabelDataplaneMode, wellknown.DataplaneModeAmbient, l.Name)
}

// Pods implements Commands.
func (l Lab) Pods(string, string) string { return l.Check() }

// Where implements Commands.
func (l Lab) Where(session.Part) string { return l.Check() }

// Logs implements Commands.
func (l Lab) Logs(p session.Part, component string) string {
	if component == "" {
		component = p.Name
	}
	return "ambit lab logs " + component + l.Name
}

// Gateway implements Commands.
func (l Lab) Gateway(string, string) string { return "ambit status" + l.Flag }

// Check implements Commands.
func (l Lab) Check() string { return "ambit lab status" + l.Name }

// Also implements Commands.
func (l Lab) Also() string { return l.Flag }

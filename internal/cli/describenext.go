package cli

import (
	"fmt"

	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// typing is what a person types next, in a cluster or about a lab.
type typing interface {
	// enrol brings the pods of a namespace into the mesh.
	enrol(namespace string) string
	// pods lists those that a selector chooses.
	pods(namespace, selector string) string
	// where lists the pods of a part of the mesh, logs prints what one of them
	// (or all of them, with the name empty) has logged.
	where(p part) string
	logs(p part, pod string) string
	// gateway shows a Gateway.
	gateway(namespace, name string) string
	// check looks at what the mesh needs.
	check() string
	// also is what has to stand behind ambit's own commands.
	also() string
}

// kubectl is for a cluster, whose mesh lives in a namespace.
type kubectl struct{ root string }

func (kubectl) enrol(namespace string) string {
	return fmt.Sprintf("kubectl label namespace %s %s=%s", namespace, wellknown.LabelDataplaneMode, wellknown.DataplaneModeAmbient)
}

func (kubectl) pods(namespace, selector string) string {
	return fmt.Sprintf("kubectl get pods -n %s -l '%s'", namespace, selector)
}

func (k kubectl) where(p part) string {
	return fmt.Sprintf("kubectl get pods -n %s -l %s -o wide", k.root, p.selector)
}

func (k kubectl) logs(p part, pod string) string {
	if pod == "" {
		pod = "-l " + p.selector
	}
	return fmt.Sprintf("kubectl logs -n %s %s", k.root, pod)
}

func (kubectl) gateway(namespace, name string) string {
	return fmt.Sprintf("kubectl describe gateway %s -n %s", name, namespace)
}

func (kubectl) check() string { return "ambit check" }
func (kubectl) also() string  { return "" }

// labCommands is for a lab: name says which to `ambit lab`, lab to the others.
type labCommands struct{ name, lab string }

func (l labCommands) enrol(namespace string) string {
	return fmt.Sprintf("ambit lab label namespace %s %s=%s%s", namespace, wellknown.LabelDataplaneMode, wellknown.DataplaneModeAmbient, l.name)
}

func (l labCommands) pods(string, string) string { return l.check() }
func (l labCommands) where(part) string          { return l.check() }

func (l labCommands) logs(p part, component string) string {
	if component == "" {
		component = p.name
	}
	return "ambit lab logs " + component + l.name
}

func (l labCommands) gateway(string, string) string { return "ambit status" + l.lab }
func (l labCommands) check() string                 { return "ambit lab status" + l.name }
func (l labCommands) also() string                  { return l.lab }

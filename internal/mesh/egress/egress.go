// Package egress has what confines the connections of a pod to the outside of the mesh: the
// settings of outbound traffic policies, and the allow-lists of EgressPolicies. Whether one
// is allowed is decided here, of values.
package egress

import (
	"fmt"
	"strings"
)

// Mode is what happens to a connection to an address that is in no registry. A higher
// mode is stricter.
type Mode uint8

// The modes. AllowAny and RegistryOnly have Istio's names; DryRun is Ambit's own.
const (
	AllowAny     Mode = iota // it goes on
	DryRun                   // it goes on, and is reported
	RegistryOnly             // it is refused
)

var names = [...]string{AllowAny: "ALLOW_ANY", DryRun: "DRY_RUN", RegistryOnly: "REGISTRY_ONLY"}

// String returns the name that users write.
func (m Mode) String() string {
	if int(m) >= len(names) {
		return names[RegistryOnly]
	}
	return names[m]
}

// Parse reads a name. With an error it returns RegistryOnly: a setting that cannot be
// read opens nothing.
func Parse(text string) (Mode, error) {
	for m, name := range names {
		if text == name {
			return Mode(m), nil
		}
	}
	return RegistryOnly, fmt.Errorf("%q is none of %s", text, strings.Join(names[:], ", "))
}

// Setting is the text of a label or an annotation.
type Setting struct {
	Text string
	Set  bool
}

// Of returns the setting of a key among labels or annotations.
func Of(values map[string]string, key string) Setting {
	text, set := values[key]
	return Setting{text, set}
}

// Effective returns the mode of a pod. The setting of its namespace replaces that of the
// mesh. The pod's own can only be stricter: its author may have less rights than the
// author of the namespace.
func Effective(mesh Mode, namespace, pod Setting) Mode {
	m := mesh
	if namespace.Set {
		m, _ = Parse(namespace.Text)
	}
	if pod.Set {
		own, _ := Parse(pod.Text)
		m = max(m, own)
	}
	return m
}

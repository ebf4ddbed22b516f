// Command roles writes the part of the charts' roles that follows from the
// kinds that ambitd reads: run it by `go generate ./charts`.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/ambit-mesh/ambit/internal/source"
)

func main() {
	out := flag.String("out", "", "file to write")
	flag.Parse()
	if err := os.WriteFile(*out, []byte(template()), 0o600); err != nil {
		fmt.Fprintln(os.Stderr, "write the rules of kinds:", err)
		os.Exit(1)
	}
}

// template returns two named templates: the rules to read objects, and the
// rules to write their status.
func template() string {
	return "{{- /* Generated from internal/source by internal/install/roles. Do not edit: run go generate ./charts. */}}\n" +
		rules("ambitd.kinds.read", "get, list, watch", func(k *source.Kind) string { return k.Plural }) +
		rules("ambitd.kinds.status", "update, patch", func(k *source.Kind) string {
			if !k.StatusWritten {
				return ""
			}
			return k.Plural + "/status"
		})
}

// rules returns one rule per group of kinds that have a resource.
func rules(name, verbs string, resource func(*source.Kind) string) string {
	var groups []string
	resources := map[string][]string{}
	for _, k := range source.Kinds() {
		r := resource(k)
		if r == "" {
			continue
		}
		if resources[k.Group] == nil {
			groups = append(groups, k.Group)
		}
		resources[k.Group] = append(resources[k.Group], r)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "{{- define %q -}}\n", name)
	for _, g := range groups {
		quoted := g
		if g == "" {
			quoted = `""`
		}
		fmt.Fprintf(&b, "- apiGroups: [%s]\n  resources: [%s]\n  verbs: [%s]\n", quoted, strings.Join(resources[g], ", "), verbs)
	}
	b.WriteString("{{- end }}\n")
	return b.String()
}

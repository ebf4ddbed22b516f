package rig

import (
	"fmt"
	"strings"
)

// ServerObject returns the YAML of a pod that runs test/echo and is ready when
// its port 9000 answers. Labels are the inside of a YAML map.
func ServerObject(namespace, name, node, labels string, args ...string) string {
	return PodObject(namespace, name, node, labels, append([]string{"ECHO", "server"}, args...)...) +
		"    readinessProbe: {tcpSocket: {port: 9000}}\n"
}

// PodObject returns the YAML of a pod that runs as a service account of its
// own name. Without a command the pod waits for exec.
func PodObject(namespace, name, node, labels string, command ...string) string {
	y := fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {name: %[2]s, namespace: %[1]s, labels: {%[4]s}}
spec:
  nodeName: %[3]s
  serviceAccountName: %[2]s
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
`, namespace, name, node, labels)
	if len(command) > 0 {
		y += `    command: ["` + strings.Join(command, `", "`) + "\"]\n"
	}
	return y
}

// NamespaceObject returns the YAML of a namespace, in the mesh or not.
func NamespaceObject(name string, ambient bool) string {
	labels := ""
	if ambient {
		labels = "istio.io/dataplane-mode: ambient"
	}
	return fmt.Sprintf("\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}}\n", name, labels)
}

// ServiceObject returns the YAML of a dual-stack Service for the pods with
// label app. Ports are the inside of a YAML list.
func ServiceObject(namespace, name, app, ports string) string {
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Service
metadata: {name: %s, namespace: %s}
spec: {selector: {app: %s}, ipFamilyPolicy: PreferDualStack, ports: [%s]}
`, name, namespace, app, ports)
}

// PolicyObject returns the YAML of an AuthorizationPolicy; rest is what its
// spec has beside the action, as the inside of a YAML map.
func PolicyObject(namespace, name, action, rest string) string {
	return fmt.Sprintf(`
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: %s, namespace: %s}
spec: {action: %s, %s}
`, name, namespace, action, rest)
}

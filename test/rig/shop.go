package rig

import "github.com/ambit-mesh/ambit/internal/lab"

// Shop is a namespace in the mesh with a server on node1 and clients on both
// nodes, and a namespace outside of it.
const Shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Namespace
metadata: {name: street}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  selector: {app: web}
  ipFamilyPolicy: PreferDualStack
  ports: [{name: http, port: 80, targetPort: 8080}, {name: echo, port: 9000}, {name: first, port: 9100}, {name: odd, port: 9321}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  nodeName: node1
  serviceAccountName: web
  containers:
  - name: web
    command: [ECHO, server, -first, ":9100"]
    readinessProbe: {tcpSocket: {port: 9000}}
---
apiVersion: v1
kind: Pod
metadata: {name: near, namespace: shop}
spec: {nodeName: node1, serviceAccountName: near, containers: [{name: shell}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: shop}
spec: {nodeName: node2, serviceAccountName: far, containers: [{name: shell}]}
---
apiVersion: v1
kind: Pod
metadata: {name: stranger, namespace: street}
spec: {nodeName: node2, containers: [{name: shell}]}
`

// The pods of Shop.
var (
	Near     = lab.InPod("shop", "near")
	Far      = lab.InPod("shop", "far")
	Web      = lab.InPod("shop", "web")
	Stranger = lab.InPod("street", "stranger")
)

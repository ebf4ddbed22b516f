package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

// BenchmarkPodChangeEndToEnd edits one pod of a mesh of 10,000 and 2,000
// services in a directory of 100 files, and waits until a connected proxy has
// the delta. Most of the time is the quiet period the file source waits for.
// heap-MB is the whole process, with the proxy's client in it.
func BenchmarkPodChangeEndToEnd(b *testing.B) {
	const pods, perFile = 10_000, 100
	files := map[string]string{}
	for f := range pods / perFile {
		files[fmt.Sprintf("pods-%03d.yaml", f)] = podFile(f*perFile, perFile, "v1")
	}
	var services strings.Builder
	for i := range pods / 5 {
		fmt.Fprintf(&services, "apiVersion: v1\nkind: Service\nmetadata: {name: svc-%d, namespace: shop}\nspec: {selector: {app: svc-%d}, clusterIP: 10.96.%d.%d, ports: [{name: http, port: 80, targetPort: http}]}\n---\n", i, i, i/250, 1+i%250)
	}
	files["services.yaml"] = services.String()
	p := start(b, files)
	px := p.connect("node1")
	got := 0
	for got < pods+pods/5 {
		got += len(px.next().Updated)
	}
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	path := p.config + "/pods-050.yaml"
	bytes, version := 0, 2
	for b.Loop() {
		text := podFile(50*perFile, 1, fmt.Sprintf("v%d", version)) + podFile(50*perFile+1, perFile-1, "v1")
		if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
			b.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			b.Fatal(err)
		}
		d := px.next()
		if len(d.Updated) != 1 || len(d.Removed) != 0 {
			b.Fatalf("%d updated, %d removed", len(d.Updated), len(d.Removed))
		}
		bytes = len(d.Updated[0].Body)
		version++
	}
	b.ReportMetric(float64(bytes), "B/delta")
	b.ReportMetric(float64(m.HeapAlloc)/1e6, "heap-MB")
	b.ReportMetric(float64(m.Sys)/1e6, "sys-MB")
}

func podFile(from, n int, version string) string {
	var s strings.Builder
	for i := from; i < from+n; i++ {
		fmt.Fprintf(&s, `---
apiVersion: v1
kind: Pod
metadata:
  name: svc-%d-%d
  namespace: shop
  uid: uid-%d
  labels: {app: svc-%d, version: %s}
  annotations: {ambient.istio.io/redirection: enabled}
spec:
  nodeName: node%d
  serviceAccountName: svc-%d
  containers: [{name: c, image: example/image, ports: [{name: http, containerPort: 8080}]}]
status:
  phase: Running
  podIP: 10.%d.%d.%d
  conditions: [{type: Ready, status: "True"}]
`, i/5, i, i, i/5, version, i%100, i/5, 1+i/62500, i/250%250, 1+i%250)
	}
	return s.String()
}

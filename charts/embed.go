// Package charts holds the Helm charts, the one source of manifests: what
// `helm install` installs from this directory is what `ambit install` installs
// from inside the program.
package charts

import "embed"

//go:generate go run ../internal/install/crds -out base/files/crds
//go:generate go run ../internal/install/roles -out ambitd/templates/_kinds.tpl
//go:generate go run ../internal/boards/write -out observability/files/boards -page ../docs/reference/metrics.md

// FS has one directory per chart: base, ambitd, cni, ztunnel, observability.
//
//go:embed all:base all:ambitd all:cni all:ztunnel all:observability
var FS embed.FS

// Paths inside FS of what `ambit dashboard` writes as well: boards for Grafana, and rules
// for Prometheus.
const (
	Boards = "observability/files/boards"
	Rules  = "observability/files/rules.yaml"
)

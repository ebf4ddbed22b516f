// Package charts holds the Helm charts, the one source of manifests: what
// `helm install` installs from this directory is what `ambit install` installs
// from inside the program.
package charts

import "embed"

//go:generate go run ../internal/install/crds -out base/files/crds
//go:generate go run ../internal/install/roles -out ambitd/templates/_kinds.tpl

// FS has one directory per chart: base, ambitd, cni, ztunnel.
//
//go:embed all:base all:ambitd all:cni all:ztunnel
var FS embed.FS

// Package e2e drives the mesh on a real Kubernetes, installed by the real
// command line. helm is built, or AMBIT_HELM names it.
package e2e

import (
	"testing"

	"github.com/ambit-mesh/ambit/test/e2e/kit"
)

// mesh is the cluster that all tests share.
var mesh *kit.Cluster

func TestMain(m *testing.M) { kit.Main(m, func(c *kit.Cluster) { mesh = c }) }

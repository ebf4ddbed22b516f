// Package scenario drives the real programs through what a mesh of layer 4
// must do, each in IPv4 and IPv6, in network namespaces of this machine.
package scenario

import (
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

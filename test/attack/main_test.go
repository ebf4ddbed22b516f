package attack

import (
	"testing"

	"github.com/ambit-mesh/ambit/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

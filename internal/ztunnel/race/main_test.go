package race

import (
	"testing"

	"github.com/ambit-mesh/ambit/internal/testutil/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }

package tokenreview_test

import (
	"testing"

	"github.com/ambit-mesh/ambit/internal/testutil/leak"
)

// A review goes on after the callers that asked for it have gone: others may wait for
// its answer. It ends by its own time limit.
func TestMain(m *testing.M) {
	leak.Main(m, "github.com/ambit-mesh/ambit/internal/kube/tokenreview.(*Reviewer).ask")
}

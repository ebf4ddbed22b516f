package scenario

import (
	"fmt"

	"github.com/ambit-mesh/ambit/test/rig"
)

// expectLines fails unless the node's access log has a line with all parts.
func expectLines(w *rig.World, node string, parts ...string) error {
	if len(w.AccessLines(node, parts...)) == 0 {
		return fmt.Errorf("no access log line of %s has all of %q", node, parts)
	}
	return nil
}

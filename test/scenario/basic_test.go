package scenario

import (
	"github.com/ambit-mesh/ambit/test/rig"
)

// What rig.Shop consists of, by short names.
const shop = rig.Shop

var near, far, web, stranger = rig.Near, rig.Far, rig.Web, rig.Stranger

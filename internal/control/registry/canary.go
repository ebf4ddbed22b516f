package registry

import (
	"cmp"
	"strconv"

	"github.com/ambit-mesh/ambit/internal/control/collection"
	"github.com/ambit-mesh/ambit/internal/control/status"
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// canaryUse is what labels and annotations ask for beside the waypoint: a part
// of the connections for a second one. Connections are not split here; what is
// read is for telling people so.
type canaryUse struct {
	name, namespace string
	set             bool
	weight          string // percent, as written
	weighted        bool
}

func useCanary(labels, annotations map[string]string) canaryUse {
	c := canaryUse{namespace: labels[wellknown.LabelUseWaypointCanaryNamespace]}
	c.name, c.set = labels[wellknown.LabelUseWaypointCanary]
	c.weight, c.weighted = annotations[wellknown.AnnotationUseWaypointCanaryWeight]
	return c
}

// under takes from a namespace what an object does not say.
func (c canaryUse) under(ns canaryUse) canaryUse {
	if !c.set {
		c.name, c.namespace, c.set = ns.name, ns.namespace, ns.set
	}
	if !c.weighted {
		c.weight, c.weighted = ns.weight, ns.weighted
	}
	return c
}

// noteCanary adds to the condition of a bound waypoint what becomes of the
// canary beside it. A namespace's canary is for those that use its waypoint.
func (d describer) noteCanary(home Space, labels, annotations map[string]string, c *status.Condition) {
	primary, own, _ := d.t.wantedWaypoint(d.r, home, labels)
	use := useCanary(labels, annotations)
	if !own {
		info, _ := collection.Fetch(d.r, d.t.namespaces, home)
		use = use.under(info.canary)
	}
	if !use.set || use.name == "" || use.name == wellknown.DataplaneModeNone {
		return
	}
	canary := Space{Cluster: home.Cluster, Name: cmp.Or(use.namespace, home.Name)}.At(use.name)
	percent, err := strconv.Atoi(use.weight)
	switch {
	case canary == primary:
		c.Reason = status.ReasonCanarySameAsPrimary
		c.Message += "; the canary is the same waypoint: name another one in the label " + wellknown.LabelUseWaypointCanary + ", or remove it"
	case use.weighted && (err != nil || percent < 0 || percent > 100):
		c.Reason = status.ReasonCanaryInvalidWeight
		c.Message += "; the canary " + canary.String() + " gets nothing: its weight " + strconv.Quote(use.weight) +
			" is not a whole number from 0 to 100; correct the annotation " + wellknown.AnnotationUseWaypointCanaryWeight
	case percent > 0:
		c.Reason = status.ReasonCanaryNotHonoured
		c.Message += "; the canary " + canary.String() + " gets nothing: this mesh does not split connections between waypoints, and all go to the first;" +
			" to change over, write the canary's name into the label " + wellknown.LabelUseWaypoint
	}
}

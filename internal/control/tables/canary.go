package tables

import (
	"github.com/ambit-mesh/ambit/internal/mesh/wellknown"
)

// Canary is what labels and annotations ask for beside the waypoint: a part
// of the connections for a second one. Connections are not split here; what is
// read is for telling people so.
type Canary struct {
	Name, Namespace string
	Set             bool
	Weight          string // percent, as written
	Weighted        bool
}

// UseCanary reads which canary the labels and annotations of an object ask for.
func UseCanary(labels, annotations map[string]string) Canary {
	c := Canary{Namespace: labels[wellknown.LabelUseWaypointCanaryNamespace]}
	c.Name, c.Set = labels[wellknown.LabelUseWaypointCanary]
	c.Weight, c.Weighted = annotations[wellknown.AnnotationUseWaypointCanaryWeight]
	return c
}

// Under takes from a namespace what an object does not say.
func (c Canary) Under(ns Canary) Canary {
	if !c.Set {
		c.Name, c.Namespace, c.Set = ns.Name, ns.Namespace, ns.Set
	}
	if !c.Weighted {
		c.Weight, c.Weighted = ns.Weight, ns.Weighted
	}
	return c
}

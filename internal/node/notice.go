package node

import (
	"errors"
	"fmt"

	"github.com/ambit-mesh/ambit/internal/zds"
)

// Notice is what the owners of a pod should know.
type Notice struct {
	Warning bool
	Reason  string // one word, for programs
	Message string // for people: what is, and what to do
}

// Reasons of notices.
const (
	ReasonEnrolled    = "MeshEnrolled"
	ReasonWaiting     = "MeshWaiting"
	ReasonEnrolFailed = "MeshEnrolFailed"
	ReasonLeaveFailed = "MeshLeaveFailed"
	// ReasonNotDiscovered is of a pod whose namespace the control plane does not
	// look at.
	ReasonNotDiscovered = "MeshNotDiscovered"
	// ReasonBadAnnotation is of a pod with an annotation that cannot be used.
	ReasonBadAnnotation = "MeshBadAnnotation"
)

// failure is the notice of a step that did not succeed, and is tried again.
func failure(event string, err error) Notice {
	n := Notice{Warning: true, Reason: ReasonEnrolFailed}
	var refused *zds.RefusedError
	var wish *wishError
	switch {
	case errors.As(err, &wish):
		n.Reason = ReasonBadAnnotation
	case event != eventEnrol:
		n.Reason = ReasonLeaveFailed
	case errors.Is(err, zds.ErrNoProxy), errors.As(err, &refused):
		n.Reason = ReasonWaiting
	}
	n.Message = fmt.Sprintf("cannot %s the pod, and goes on trying: %v", event, explain(err))
	return n
}

// explain adds the next step to an error of which it is known.
func explain(err error) error {
	var refused *zds.RefusedError
	var next string
	switch {
	case err == nil:
		return nil
	case errors.Is(err, zds.ErrNoProxy):
		next = "see whether the ztunnel pod of this node runs and is ready"
	case errors.As(err, &refused):
		next = "see the log of the ztunnel pod of this node"
	case errors.Is(err, ErrNoNamespace):
		next = "the pod has no running process that the node agent can see; see whether the host's /proc is mounted into it"
	default:
		return err
	}
	return fmt.Errorf("%w: %s", err, next)
}

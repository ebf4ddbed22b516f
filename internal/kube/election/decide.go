package election

import (
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// sight is what this replica saw of a lease, and when by its own clock. Other
// replicas' clocks do not matter: a lease has run out when it was not seen to
// change for as long as it says it holds.
type sight struct {
	version string
	spec    coordinationv1.LeaseSpec
	at      time.Time
}

// saw is the sight after the lease was read at now.
func (s sight) saw(lease *coordinationv1.Lease, now time.Time) sight {
	if s.version == lease.ResourceVersion && !s.at.IsZero() {
		return s
	}
	return sight{version: lease.ResourceVersion, spec: lease.Spec, at: now}
}

// holder is who holds the lease, empty when nobody does.
func (s sight) holder() string {
	if s.spec.HolderIdentity == nil {
		return ""
	}
	return *s.spec.HolderIdentity
}

// free reports whether a replica may write itself into the lease.
func (s sight) free(me string, now time.Time) bool {
	if h := s.holder(); h == "" || h == me {
		return true
	}
	length := leaseDuration
	if s.spec.LeaseDurationSeconds != nil {
		length = time.Duration(*s.spec.LeaseDurationSeconds) * time.Second
	}
	return !now.Before(s.at.Add(length))
}

// held is the lease as the replica that takes or renews it writes it.
func (s sight) held(me string, length time.Duration, now time.Time) coordinationv1.LeaseSpec {
	spec := *s.spec.DeepCopy()
	if s.holder() != me {
		spec.AcquireTime = &metav1.MicroTime{Time: now}
		spec.LeaseTransitions = new(int32)
		if s.spec.LeaseTransitions != nil {
			*spec.LeaseTransitions = *s.spec.LeaseTransitions + 1
		}
	}
	// Whole seconds are all that the field has; a longer lease is the safe side.
	seconds := int32((length + time.Second - 1) / time.Second)
	spec.HolderIdentity, spec.LeaseDurationSeconds = &me, &seconds
	spec.RenewTime = &metav1.MicroTime{Time: now}
	return spec
}

// released is the lease as a replica gives it back: nobody's, and over soon for
// those who look at the time alone.
func (s sight) released(now time.Time) coordinationv1.LeaseSpec {
	nobody, seconds := "", int32(1)
	return coordinationv1.LeaseSpec{
		HolderIdentity: &nobody, LeaseDurationSeconds: &seconds, LeaseTransitions: s.spec.LeaseTransitions,
		AcquireTime: &metav1.MicroTime{Time: now}, RenewTime: &metav1.MicroTime{Time: now},
	}
}

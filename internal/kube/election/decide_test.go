package election

import (
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func lease(version, holder string, seconds int32) *coordinationv1.Lease {
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{ResourceVersion: version},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity: &holder, LeaseDurationSeconds: &seconds, LeaseTransitions: ptr.To[int32](4),
			AcquireTime: &metav1.MicroTime{Time: time.Unix(1000, 0)}, RenewTime: &metav1.MicroTime{Time: time.Unix(1001, 0)},
		},
	}
}

func TestFree(t *testing.T) {
	start := time.Unix(5000, 0)
	for name, tc := range map[string]struct {
		holder string
		after  time.Duration
		free   bool
	}{
		"nobody's":           {"", 0, true},
		"mine":               {"me", 0, true},
		"another's, just":    {"you", 0, false},
		"another's, nearly":  {"you", 7*time.Second - 1, false},
		"another's, no more": {"you", 7 * time.Second, true},
	} {
		s := sight{}.saw(lease("1", tc.holder, 7), start)
		// Looking again changes nothing: it is the change that is timed.
		s = s.saw(lease("1", tc.holder, 7), start.Add(tc.after))
		if got := s.free("me", start.Add(tc.after)); got != tc.free {
			t.Errorf("%s: %v", name, got)
		}
	}
	s := sight{}.saw(lease("1", "you", 7), start)
	s = s.saw(lease("2", "you", 7), start.Add(6*time.Second))
	if s.free("me", start.Add(8*time.Second)) {
		t.Error("free although it was renewed")
	}
	s.spec.LeaseDurationSeconds = nil
	if s.free("me", start.Add(6*time.Second+leaseDuration-1)) || !s.free("me", start.Add(6*time.Second+leaseDuration)) {
		t.Error("a lease without a length has not the usual one")
	}
	if !(sight{}).free("me", start) {
		t.Error("a lease that is not there is not free")
	}
}

func TestHeld(t *testing.T) {
	now := time.Unix(5000, 0)
	for name, tc := range map[string]struct {
		from        sight
		transitions int32
		acquired    time.Time
	}{
		"new":        {sight{}, 0, now},
		"taken over": {sight{}.saw(lease("1", "you", 7), now), 5, now},
		"renewed":    {sight{}.saw(lease("1", "me", 7), now), 4, time.Unix(1000, 0)},
	} {
		got := tc.from.held("me", 1500*time.Millisecond, now)
		if *got.HolderIdentity != "me" || *got.LeaseDurationSeconds != 2 || *got.LeaseTransitions != tc.transitions ||
			!got.AcquireTime.Equal(&metav1.MicroTime{Time: tc.acquired}) || !got.RenewTime.Equal(&metav1.MicroTime{Time: now}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	mine := sight{}.saw(lease("1", "me", 7), now)
	if got := mine.released(now); *got.HolderIdentity != "" || *got.LeaseTransitions != 4 {
		t.Errorf("released: %+v", got)
	}
}

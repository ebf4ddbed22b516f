package kube

import (
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// health tells people about outages: once when one begins, once when it ends,
// however many kinds are watched and however often they try.
type health struct {
	log     *slog.Logger
	metrics *sourceMetrics

	mu      sync.Mutex
	down    map[string]struct{} // kinds for which the API did not answer
	since   time.Time
	refused map[string]int // kinds that the API refuses, how often in a row
	back    chan struct{}  // closed when it answers again
}

// patience is how often a kind must be refused in a row before people are
// told: an API server that starts refuses what it does not know yet.
const patience = 3

func newHealth(log *slog.Logger, m *sourceMetrics) *health {
	return &health{log: log, metrics: m, down: map[string]struct{}{}, refused: map[string]int{}, back: make(chan struct{})}
}

func (h *health) fail(kind string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.metrics.failures.WithLabelValues(kind).Inc()
	if answered(err) {
		h.reached(kind)
		h.refused[kind]++
		if h.refused[kind] == patience {
			h.log.Error("the Kubernetes API refuses to show a kind of object: what was seen stays, changes are not seen; does the service account have the permission to list and watch it?",
				"kind", kind, "error", message(err))
		}
		return
	}
	if len(h.down) == 0 {
		h.since = time.Now()
		h.metrics.reachable.Set(0)
		h.log.Warn("the Kubernetes API does not answer: what was seen stays in effect, changes are not seen; trying again", "kind", kind, "error", message(err))
	}
	h.down[kind] = struct{}{}
}

func (h *health) ok(kind string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refused[kind] >= patience {
		h.log.Info("the Kubernetes API shows the kind of object again", "kind", kind)
	}
	delete(h.refused, kind)
	h.reached(kind)
}

// reached notes that the API has answered.
func (h *health) reached(kind string) {
	h.metrics.reachable.Set(1)
	if len(h.down) == 0 {
		return
	}
	delete(h.down, kind)
	if len(h.down) == 0 {
		h.log.Info("the Kubernetes API answers again", "after", time.Since(h.since).Round(time.Millisecond))
	}
	close(h.back)
	h.back = make(chan struct{})
}

// again is closed when some kind could be read after an outage.
func (h *health) again() <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.back
}

// answered reports whether an error is the API's considered answer.
func answered(err error) bool {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return false
	}
	code := status.Status().Code
	return code >= http.StatusBadRequest && code < http.StatusInternalServerError && code != http.StatusTooManyRequests
}

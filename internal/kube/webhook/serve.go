package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/ambit-mesh/ambit/internal/control/admission"
	"github.com/ambit-mesh/ambit/internal/source"
)

const (
	// maxBody has room for an object and its predecessor, each as large as the
	// API server takes them (3 MiB), in JSON.
	maxBody = 8 << 20
	// maxReviews at the same time; others wait for maxWait.
	maxReviews = 16
	maxWait    = 2 * time.Second
)

type handler struct {
	reviewer admission.Reviewer
	log      *slog.Logger
	m        *metrics
	slots    chan struct{}
}

func newHandler(r admission.Reviewer, log *slog.Logger, m *metrics) http.Handler {
	h := &handler{r, log, m, make(chan struct{}, maxReviews)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /validate", h.validate)
	return mux
}

func (h *handler) validate(w http.ResponseWriter, r *http.Request) {
	wait := time.NewTimer(maxWait)
	defer wait.Stop()
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-wait.C:
		h.refuse(w, http.StatusServiceUnavailable, errors.New("too many reviews at the same time"))
		return
	case <-r.Context().Done():
		return
	}
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mt != "application/json" {
		h.refuse(w, http.StatusUnsupportedMediaType, errors.New("expected application/json"))
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		var tooLarge *http.MaxBytesError
		code := http.StatusBadRequest
		if errors.As(err, &tooLarge) {
			code = http.StatusRequestEntityTooLarge
		}
		h.refuse(w, code, err)
		return
	}
	var review admissionv1.AdmissionReview
	if err := json.Unmarshal(body, &review); err != nil || review.Request == nil || review.Request.UID == "" {
		h.refuse(w, http.StatusBadRequest, errors.Join(errors.New("not an AdmissionReview with a request"), err))
		return
	}
	if want := admissionv1.SchemeGroupVersion.String(); review.APIVersion != want {
		h.refuse(w, http.StatusBadRequest, fmt.Errorf("version %q of AdmissionReview is not %s", review.APIVersion, want))
		return
	}
	started := time.Now()
	answer := h.answer(review.Request)
	h.m.duration.Observe(time.Since(started).Seconds())
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(admissionv1.AdmissionReview{TypeMeta: review.TypeMeta, Response: answer})
}

// refuse answers what is not a review. The API server takes any such answer as
// no answer.
func (h *handler) refuse(w http.ResponseWriter, code int, err error) {
	h.m.httpErrors.WithLabelValues(fmt.Sprint(code)).Inc()
	h.log.Debug("request to the webhook not understood", "code", code, "error", err)
	http.Error(w, err.Error(), code)
}

func (h *handler) answer(q *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	out := &admissionv1.AdmissionResponse{UID: q.UID, Allowed: true}
	gvk := schema.GroupVersionKind{Group: q.Kind.Group, Version: q.Kind.Version, Kind: q.Kind.Kind}
	var verdict admission.Result
	switch q.Operation {
	case admissionv1.Create:
		verdict = h.reviewer.Review(q.Object.Raw, gvk)
	case admissionv1.Update:
		verdict = h.reviewer.ReviewUpdate(q.OldObject.Raw, q.Object.Raw, gvk)
	default:
		return out
	}
	out.Allowed, out.Warnings = verdict.Allowed, verdict.Warnings
	// The kind decides: the request could name any resource with it.
	resource, _ := meta.UnsafeGuessKindToResource(gvk)
	labels := prometheus.Labels{"group": gvk.Group, "version": gvk.Version, "resource": resource.Resource}
	if !known(gvk) {
		labels = prometheus.Labels{"group": "other", "version": "", "resource": ""}
	}
	if verdict.Allowed {
		h.m.passed.With(labels).Inc()
		return out
	}
	h.m.failed.With(labels).Inc()
	h.log.Info("configuration refused", "kind", gvk.Kind, "namespace", q.Namespace, "name", q.Name,
		"user", q.UserInfo.Username, "dry_run", q.DryRun != nil && *q.DryRun, "message", verdict.Message)
	out.Result = &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusBadRequest, Reason: metav1.StatusReasonBadRequest,
		Message: verdict.Message,
	}
	return out
}

// known bounds the label values of metrics to kinds we know, so that nobody
// who reaches the port can invent series.
func known(gvk schema.GroupVersionKind) bool {
	switch gvk.Version {
	case "v1", "v1beta1", "v1alpha3", "v1alpha1":
	default:
		return false
	}
	_, ok := source.KindOf(gvk.Group, gvk.Kind)
	return ok || len(admission.CheckKind(gvk.GroupKind())) > 0
}

// metrics have Istio's names where it has them.
type metrics struct {
	passed, failed, httpErrors *prometheus.CounterVec
	updates                    prometheus.Counter
	updateErrors               *prometheus.CounterVec
	demanded                   prometheus.Gauge
	duration                   prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) *metrics {
	kind := []string{"group", "version", "resource"}
	m := &metrics{
		passed:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "galley_validation_passed", Help: "Objects that were allowed."}, kind),
		failed:       prometheus.NewCounterVec(prometheus.CounterOpts{Name: "galley_validation_failed", Help: "Objects that were refused."}, kind),
		httpErrors:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "galley_validation_http_error", Help: "Requests that were no admission reviews."}, []string{"status"}),
		updates:      prometheus.NewCounter(prometheus.CounterOpts{Name: "galley_validation_config_updates", Help: "Changes made to the webhook's configuration."}),
		updateErrors: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "galley_validation_config_update_error", Help: "Failures to keep the webhook's configuration in order."}, []string{"reason"}),
		demanded:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "ambit_validation_enforced", Help: "1 when the API server stores nothing without our answer."}),
		duration:     prometheus.NewHistogram(prometheus.HistogramOpts{Name: "ambit_validation_duration_seconds", Help: "Time to judge one object.", Buckets: prometheus.ExponentialBuckets(1e-5, 10, 6)}),
	}
	if r != nil {
		r.MustRegister(m.passed, m.failed, m.httpErrors, m.updates, m.updateErrors, m.demanded, m.duration)
	}
	return m
}

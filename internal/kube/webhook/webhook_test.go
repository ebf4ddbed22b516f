package webhook

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambit-mesh/ambit/internal/control/admission"
	"github.com/ambit-mesh/ambit/internal/kube/kubetest"
)

func post(t *testing.T, h http.Handler, contentType, body string) (int, *admissionv1.AdmissionResponse) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/validate", strings.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	var review admissionv1.AdmissionReview
	if w.Code == http.StatusOK {
		if err := json.Unmarshal(w.Body.Bytes(), &review); err != nil || review.APIVersion != "admission.k8s.io/v1" || review.Kind != "AdmissionReview" {
			t.Fatalf("%v: %s", err, w.Body)
		}
	}
	return w.Code, review.Response
}

func request(operation, kind, old, obj string) string {
	quoted := func(s string) string {
		if s == "" {
			return "null"
		}
		return s
	}
	return fmt.Sprintf(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u1","operation":%q,
		"kind":{"group":"security.istio.io","version":"v1","kind":%q},"resource":{"group":"security.istio.io","version":"v1","resource":"r"},
		"object":%s,"oldObject":%s}}`, operation, kind, quoted(obj), quoted(old))
}

const (
	good  = `{"metadata":{"name":"x","namespace":"n"},"spec":{}}`
	bad   = `{"metadata":{"name":"x","namespace":"n"},"spec":{"rules":[{"to":[{"operation":{"ports":["http"]}}]}]}}`
	worse = `{"metadata":{"name":"x","namespace":"n"},"spec":{"rules":[{"to":[{"operation":{"ports":["https"]}}]}]}}`
)

func TestReviews(t *testing.T) {
	reg := prometheus.NewRegistry()
	m := newMetrics(reg)
	h := newHandler(admission.Reviewer{}, slog.New(slog.DiscardHandler), m)
	for name, tt := range map[string]struct {
		contentType, body string
		code              int
		allowed           bool
		warnings          int
	}{
		"good":                  {body: request("CREATE", "AuthorizationPolicy", "", good), allowed: true},
		"bad":                   {body: request("CREATE", "AuthorizationPolicy", "", bad)},
		"becomes bad":           {body: request("UPDATE", "AuthorizationPolicy", worse, bad)},
		"was bad":               {body: request("UPDATE", "AuthorizationPolicy", bad, bad), allowed: true, warnings: 1},
		"goes away":             {body: request("DELETE", "AuthorizationPolicy", bad, ""), allowed: true},
		"has no effect":         {body: request("CREATE", "RequestAuthentication", "", good), allowed: true, warnings: 2},
		"another resource":      {body: strings.Replace(request("CREATE", "AuthorizationPolicy", "", good), `"resource":"`, `"resource":"made-up-`, 1), allowed: true},
		"is unknown":            {body: request("CREATE", "Whatever", "", `{}`), allowed: true},
		"not JSON":              {body: `{`, code: 400},
		"no request":            {body: `{"apiVersion":"admission.k8s.io/v1"}`, code: 400},
		"another version":       {body: strings.Replace(request("CREATE", "X", "", good), "k8s.io/v1", "k8s.io/v1beta1", 1), code: 400},
		"another type":          {contentType: "text/plain", body: request("CREATE", "X", "", good), code: 415},
		"too large":             {body: strings.Repeat(" ", maxBody+1), code: 413},
		"an object that is not": {body: request("CREATE", "AuthorizationPolicy", "", ""), allowed: false},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.contentType == "" {
				tt.contentType = "application/json; charset=utf-8"
			}
			if tt.code == 0 {
				tt.code = 200
			}
			code, got := post(t, h, tt.contentType, tt.body)
			if code != tt.code {
				t.Fatalf("code %d, want %d", code, tt.code)
			}
			if code != 200 {
				return
			}
			if got.UID != "u1" || got.Allowed != tt.allowed || len(got.Warnings) != tt.warnings {
				t.Errorf("%+v", got)
			}
			if !got.Allowed && (got.Result == nil || got.Result.Message == "" || got.Result.Code != 400) {
				t.Errorf("%+v", got.Result)
			}
		})
	}
	if n := testutil.CollectAndCount(m.passed); n != 3 { // two kinds, and what is unknown
		t.Errorf("%d series of what passed", n)
	}
	for _, r := range []*http.Request{httptest.NewRequest("GET", "/validate", nil), httptest.NewRequest("POST", "/", nil)} {
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code < 400 {
			t.Errorf("%s %s: %d", r.Method, r.URL, w.Code)
		}
	}
}

// authority is a CA of one certificate that can change it.
type authority struct {
	mu      sync.Mutex
	cert    tls.Certificate
	pem     []byte
	changed chan struct{}
}

func (a *authority) rotate(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "x"}, IsCA: true, BasicConstraintsValid: true,
		DNSNames: []string{"istiod.istio-system.svc"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.changed != nil {
		close(a.changed)
	}
	a.changed = make(chan struct{})
	a.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (a *authority) bundle() ([]byte, <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pem, a.changed
}

func (a *authority) certificate([]string) (*tls.Config, error) {
	return &tls.Config{NextProtos: []string{"h2"}, ClientAuth: tls.RequestClientCert, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		a.mu.Lock()
		defer a.mu.Unlock()
		cert := a.cert // the caller reads it while rotate writes the next one
		return &cert, nil
	}}, nil
}

// apiServer does what the real one does with a created policy: it asks the
// webhooks whose selectors match, by the certificates in their configuration.
func apiServer(t *testing.T, s *kubetest.Server, addr string, reachable *atomic.Bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("dryRun") != "All" {
			t.Errorf("not a dry run: %s", r.URL)
		}
		body, _ := io.ReadAll(r.Body)
		var obj struct {
			Metadata struct{ Labels map[string]string }
		}
		_ = json.Unmarshal(body, &obj)
		cfg := config()
		s.Get(cfg)
		for _, hook := range cfg.Webhooks {
			sel, _ := metav1.LabelSelectorAsSelector(hook.ObjectSelector)
			if !sel.Matches(labelSet(obj.Metadata.Labels)) || !reachable.Load() {
				continue
			}
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(hook.ClientConfig.CABundle)
			c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "istiod.istio-system.svc", NextProtos: []string{"http/1.1"}}}}
			res, err := c.Post("https://"+addr+"/validate", "application/json", strings.NewReader(request("CREATE", "AuthorizationPolicy", "", string(body))))
			if err != nil {
				continue // failurePolicy Ignore
			}
			var review admissionv1.AdmissionReview
			_ = json.NewDecoder(res.Body).Decode(&review)
			res.Body.Close()
			if review.Response != nil && !review.Response.Allowed {
				st := *review.Response.Result
				st.Kind, st.APIVersion = "Status", "v1"
				st.Message = fmt.Sprintf("admission webhook %q denied the request: %s", hook.Name, st.Message)
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(int(st.Code))
				_ = json.NewEncoder(w).Encode(st)
				return
			}
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write(body)
	})
}

type labelSet map[string]string

func (s labelSet) Has(k string) bool              { _, ok := s[k]; return ok }
func (s labelSet) Get(k string) string            { return s[k] }
func (s labelSet) Lookup(k string) (string, bool) { v, ok := s[k]; return v, ok }

func config() *admissionregistrationv1.ValidatingWebhookConfiguration {
	ignore := admissionregistrationv1.Ignore
	hook := func(name, service string, op metav1.LabelSelectorOperator, values ...string) admissionregistrationv1.ValidatingWebhook {
		return admissionregistrationv1.ValidatingWebhook{
			Name: name, FailurePolicy: &ignore,
			ClientConfig:   admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Namespace: "istio-system", Name: service}},
			ObjectSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "istio.io/rev", Operator: op, Values: values}}},
		}
	}
	return &admissionregistrationv1.ValidatingWebhookConfiguration{
		TypeMeta:   metav1.TypeMeta{APIVersion: "admissionregistration.k8s.io/v1", Kind: "ValidatingWebhookConfiguration"},
		ObjectMeta: metav1.ObjectMeta{Name: "ambit-validator-istio-system"},
		Webhooks: []admissionregistrationv1.ValidatingWebhook{
			hook("rev.validation.istio.io", "istiod", metav1.LabelSelectorOpIn, "default"),
			hook("validation.istio.io", "istiod", metav1.LabelSelectorOpDoesNotExist),
			hook("somebody.else", "other", metav1.LabelSelectorOpExists),
		},
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not in time: " + what)
		}
	}
}

// world is a running webhook beside its API server.
type world struct {
	t         *testing.T
	server    *kubetest.Server
	ca        *authority
	reachable atomic.Bool
	metrics   *prometheus.Registry
}

func start(t *testing.T, objs ...runtime.Object) *world {
	t.Helper()
	w := &world{t: t, server: kubetest.Start(t, objs...), ca: &authority{}, metrics: prometheus.NewRegistry()}
	w.ca.rotate(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.server.Handle("/apis/security.istio.io/v1/namespaces/istio-system/authorizationpolicies", apiServer(t, w.server, ln.Addr().String(), &w.reachable))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Client: w.server.Client(), Namespace: "istio-system", Listen: ln, Certificate: w.ca.certificate, CABundle: w.ca.bundle, Registerer: w.metrics, retry: 20 * time.Millisecond})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) config() *admissionregistrationv1.ValidatingWebhookConfiguration {
	cfg := config()
	w.server.Get(cfg)
	return cfg
}

// metric is the sum of a metric's series.
func (w *world) metric(name string) (sum float64) {
	w.t.Helper()
	all, err := w.metrics.Gather()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range all {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

func policy(w admissionregistrationv1.ValidatingWebhook) admissionregistrationv1.FailurePolicyType {
	return *w.FailurePolicy
}

func TestAnAnswerIsDemandedOnlyOnceOneArrived(t *testing.T) {
	w := start(t, config())
	trusted := func(cfg *admissionregistrationv1.ValidatingWebhookConfiguration) bool {
		want, _ := w.ca.bundle()
		return bytes.Equal(cfg.Webhooks[0].ClientConfig.CABundle, want) && bytes.Equal(cfg.Webhooks[1].ClientConfig.CABundle, want)
	}
	eventually(t, "our roots are in the configuration", func() bool { return trusted(w.config()) })
	time.Sleep(200 * time.Millisecond) // several tries of the self-test
	if cfg := w.config(); policy(cfg.Webhooks[0]) != "Ignore" || policy(cfg.Webhooks[1]) != "Ignore" {
		t.Fatal("an answer is demanded that cannot arrive")
	}
	w.reachable.Store(true)
	enforced := func() bool {
		cfg := w.config()
		return policy(cfg.Webhooks[0]) == "Fail" && policy(cfg.Webhooks[1]) == "Fail"
	}
	eventually(t, "answers are demanded", enforced)
	if cfg := w.config(); policy(cfg.Webhooks[2]) != "Ignore" || cfg.Webhooks[2].ClientConfig.CABundle != nil {
		t.Error("the webhook of somebody else was changed")
	}
	// An upgrade that writes the manifest again.
	fresh := config()
	w.server.Update(fresh)
	eventually(t, "what was undone is done again", func() bool { return enforced() && trusted(w.config()) })

	w.ca.rotate(t)
	eventually(t, "new roots", func() bool { return trusted(w.config()) })
	w.reachable.Store(false)
	w.ca.rotate(t)
	eventually(t, "new roots, out of reach", func() bool { return trusted(w.config()) })
	if !enforced() {
		t.Error("failing to answer has opened the door")
	}
}

// Who has chosen Ignore keeps it, also after it was Fail; without the choice
// it is Fail again.
func TestChosenIgnore(t *testing.T) {
	chosen := config()
	chosen.Annotations = map[string]string{annotationPolicy: "Ignore"}
	w := start(t, chosen)
	w.reachable.Store(true)
	eventually(t, "our roots are in the configuration", func() bool {
		want, _ := w.ca.bundle()
		return bytes.Equal(w.config().Webhooks[0].ClientConfig.CABundle, want)
	})
	eventually(t, "the answers were seen to arrive", func() bool { return w.metric("galley_validation_failed") >= 2 })
	time.Sleep(200 * time.Millisecond)
	if cfg := w.config(); policy(cfg.Webhooks[0]) != "Ignore" || policy(cfg.Webhooks[1]) != "Ignore" || w.metric("ambit_validation_enforced") != 0 {
		t.Fatal("an answer is demanded although somebody chose otherwise")
	}
	w.server.Update(config())
	enforced := func() bool {
		cfg := w.config()
		return policy(cfg.Webhooks[0]) == "Fail" && policy(cfg.Webhooks[1]) == "Fail"
	}
	eventually(t, "without the choice answers are demanded", enforced)
	again := w.config()
	again.Annotations = map[string]string{annotationPolicy: "Ignore"}
	w.server.Update(again)
	eventually(t, "the choice counts at any time", func() bool {
		cfg := w.config()
		return policy(cfg.Webhooks[0]) == "Ignore" && policy(cfg.Webhooks[1]) == "Ignore" && policy(cfg.Webhooks[2]) == "Ignore"
	})
}

func TestConfigurationThatComesLater(t *testing.T) {
	w := start(t)
	w.reachable.Store(true)
	time.Sleep(50 * time.Millisecond)
	w.server.Add(config())
	eventually(t, "it is kept", func() bool { return policy(w.config().Webhooks[0]) == "Fail" })
}

func TestConflictsAreRetried(t *testing.T) {
	w := start(t, config())
	var conflicts atomic.Int32
	w.server.OnRequest(func(verb, resource string) int {
		if verb == "update" && conflicts.Add(1) <= 3 {
			return http.StatusConflict
		}
		return 0
	})
	w.reachable.Store(true)
	eventually(t, "it is kept", func() bool { return policy(w.config().Webhooks[0]) == "Fail" })
}

func TestNamesOfARevision(t *testing.T) {
	o := Options{Namespace: "mesh", ServiceName: "istiod-canary"}.withDefaults()
	if o.ConfigName != "ambit-validator-canary-mesh" || o.RootNamespace != "mesh" {
		t.Error(o.ConfigName, o.RootNamespace)
	}
}

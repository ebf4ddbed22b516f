// Package castore keeps the state of the certificate authority in a Secret,
// and reads a plugged-in CA from one. Replicas share the Secret: every save
// says which version it replaces, and the API server refuses the second of two.
//
// The Secret is Istio's istio-ca-secret. Beside our own state it holds the
// signing root under Istio's names, so that its tools find it; one that Istio
// left behind is adopted.
package castore

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/ambit-mesh/ambit/internal/control/ca"
	"github.com/ambit-mesh/ambit/internal/kube/client"
)

// Names of the Secrets.
const (
	StateSecret  = "istio-ca-secret"
	PluginSecret = "cacerts"
)

// Keys of StateSecret.
const (
	stateKey = "ca-state.json"
	certKey  = "ca-cert.pem"
	keyKey   = "ca-key.pem"
	rootsKey = "root-cert.pem"
)

// secretType is that of Istio's own.
const secretType = "istio.io/ca-root"

// callTimeout bounds one call of the API. Whoever needs a longer certificate
// than was recorded waits for it.
const callTimeout = 5 * time.Second

// secret is one Secret, watched once for all its readers.
type secret struct {
	kube            *client.Typed
	namespace, name string

	mu      sync.Mutex
	readers []*reader
}

// reader is one who reads a Secret, and is told when somebody else has changed
// it.
type reader struct {
	*secret
	changed chan struct{}
	// seen is the version that was read or written here last.
	seen  atomic.Pointer[string]
	dirty atomic.Bool // changed since it was read
}

func newSecret(kube *client.Typed, namespace, name string) *secret {
	return &secret{kube: kube, namespace: namespace, name: name}
}

// reader adds a reader. What is in the Secret when it is watched already, the
// reader has to get by itself.
func (s *secret) reader() *reader {
	r := &reader{secret: s, changed: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readers = append(s.readers, r)
	return r
}

// String names the Secret.
func (s *secret) String() string { return "Secret " + s.namespace + "/" + s.name }

// Changed has a value after the Secret was changed by somebody else.
func (r *reader) Changed() <-chan struct{} { return r.changed }

// get returns nil when there is no such Secret.
func (r *reader) get() (*corev1.Secret, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	obj, err := r.kube.CoreV1().Secrets(r.namespace).Get(ctx, r.name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		r.saw("")
		return nil, nil
	case err != nil:
		return nil, r.unavailable(err)
	}
	r.saw(obj.ResourceVersion)
	return obj, nil
}

// unavailable is the error of a call that did not do what it should have.
func (s *secret) unavailable(err error) error {
	next := ""
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		next = "; ambitd's service account needs the permission to get, create, update and watch it, as the chart's Role gives it"
	}
	return fmt.Errorf("%s %w: %w%s", s, ca.ErrUnavailable, err, next)
}

func (r *reader) saw(version string) { r.seen.Store(&version) }

// Run watches until ctx ends.
func (s *secret) Run(ctx context.Context) error {
	informer := client.Informer(s.kube.CoreV1().Secrets(s.namespace), &corev1.Secret{}, client.Selection{Name: s.name})
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { s.notify(o, false) },
		UpdateFunc: func(_, o any) { s.notify(o, false) },
		DeleteFunc: func(o any) { s.notify(o, true) },
	})
	if err != nil {
		return err
	}
	go func() {
		// The first list has no event for a Secret that was deleted between the
		// readers' first look and this list.
		if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) && len(informer.GetStore().ListKeys()) == 0 {
			s.notify(nil, true)
		}
	}()
	informer.RunWithContext(ctx)
	return nil
}

func (s *secret) notify(obj any, deleted bool) {
	o, ok := obj.(*corev1.Secret)
	if ok && o.Name != s.name {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.readers {
		if seen := r.seen.Load(); ok && !deleted && seen != nil && *seen == o.ResourceVersion {
			continue
		}
		r.dirty.Store(true)
		select {
		case r.changed <- struct{}{}:
		default:
		}
	}
}

// Store is a ca.Store.
type Store struct {
	*reader
	last *corev1.Secret // as read or written last; the authority makes one call at a time
}

// New returns the store in StateSecret of a namespace.
func New(kube *client.Typed, namespace string) *Store {
	return &Store{reader: newSecret(kube, namespace, StateSecret).reader()}
}

// Load implements ca.Store.
func (s *Store) Load() (rec ca.Record, version string, err error) {
	if s.last, err = s.get(); err != nil || s.last == nil {
		return ca.Record{}, "", err
	}
	d := s.last.Data
	return ca.Record{State: d[stateKey], Cert: d[certKey], Key: d[keyKey], Roots: d[rootsKey]}, s.last.ResourceVersion, nil
}

// Save implements ca.Store.
func (s *Store) Save(rec ca.Record, version string) (newVersion string, err error) {
	next, err := s.next(rec, version)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	api := s.kube.CoreV1().Secrets(s.namespace)
	if version == "" {
		next, err = api.Create(ctx, next, metav1.CreateOptions{})
	} else {
		next, err = api.Update(ctx, next, metav1.UpdateOptions{})
	}
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err) && version != "":
		return "", fmt.Errorf("%w: %w", ca.ErrConflict, err)
	case err != nil:
		return "", s.unavailable(err)
	}
	s.last = next
	s.saw(next.ResourceVersion)
	return next.ResourceVersion, nil
}

// next is the Secret with the record; what others put beside it stays.
func (s *Store) next(rec ca.Record, version string) (*corev1.Secret, error) {
	next := &corev1.Secret{Type: secretType}
	if version != "" {
		if s.last == nil || s.last.ResourceVersion != version {
			return nil, fmt.Errorf("%w: version %s was not read here", ca.ErrConflict, version)
		}
		next = s.last.DeepCopy()
	}
	next.Namespace, next.Name = s.namespace, s.name
	data := map[string][]byte{}
	maps.Copy(data, next.Data)
	for k, v := range map[string][]byte{stateKey: rec.State, certKey: rec.Cert, keyKey: rec.Key, rootsKey: rec.Roots} {
		if len(v) == 0 {
			delete(data, k)
		} else {
			data[k] = v
		}
	}
	next.Data = data
	return next, nil
}

// Publish implements ca.Store: the roots are part of what is saved.
func (*Store) Publish([]byte) error { return nil }

// Close implements ca.Store.
func (*Store) Close() error { return nil }

// Plugin is a ca.PluginSource. It is asked by one goroutine at a time.
type Plugin struct {
	*reader
	read  bool
	files map[string][]byte
}

// NewPlugin returns the plugged-in CA of PluginSecret of a namespace.
func NewPlugin(kube *client.Typed, namespace string) *Plugin {
	return &Plugin{reader: newSecret(kube, namespace, PluginSecret).reader()}
}

// Files implements ca.PluginSource.
func (p *Plugin) Files(fresh bool) (map[string][]byte, error) {
	if p.read && !fresh && !p.dirty.Swap(false) {
		return p.files, nil
	}
	obj, err := p.get()
	if err != nil {
		p.dirty.Store(true)
		return nil, err
	}
	p.read, p.files = true, nil
	if obj != nil {
		p.files = obj.Data
	}
	return p.files, nil
}

// RevocationKey is the key of PluginSecret that holds revocation lists, as in
// the files of Istio's plugged-in CA.
const RevocationKey = "ca-crl.pem"

// Revocations are the revocation lists beside the plugged-in CA.
type Revocations struct {
	*reader
	check  func([]byte) error
	logger *slog.Logger

	taking sync.Mutex
	text   []byte
	other  chan struct{} // closed when text is another
}

// NewRevocations returns those beside a plugged-in CA, whose Run tells them
// when the Secret changes. What check finds fault with is not taken: the last
// good lists stay.
func NewRevocations(beside *Plugin, check func([]byte) error, logger *slog.Logger) *Revocations {
	return &Revocations{reader: beside.secret.reader(), check: check, logger: logger, other: make(chan struct{})}
}

// Text returns the lists, nil as long as there were none, and what is closed
// when there are others.
func (r *Revocations) Text() ([]byte, <-chan struct{}) {
	r.taking.Lock()
	defer r.taking.Unlock()
	return r.text, r.other
}

// Run follows the lists until ctx ends.
func (r *Revocations) Run(ctx context.Context) error {
	now := make(chan time.Time, 1)
	now <- time.Time{}
	var again <-chan time.Time = now
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.Changed():
		case <-again:
		}
		again = nil
		text, err := r.read()
		if err != nil {
			r.logger.Warn("cannot read the revocation lists, trying again; the last good ones stay", "error", err)
			again = time.After(callTimeout)
			continue
		}
		if len(text) == 0 {
			continue
		}
		if err := r.check(text); err != nil {
			r.logger.Error("the revocation lists cannot be taken; the last good ones stay", "secret", r.namespace+"/"+r.name, "key", RevocationKey, "error", err)
			continue
		}
		r.take(text)
	}
}

func (r *Revocations) read() ([]byte, error) {
	obj, err := r.get()
	if err != nil || obj == nil {
		return nil, err
	}
	return obj.Data[RevocationKey], nil
}

// take remembers new lists. Without any, the last ones stay: who was revoked
// stays revoked until a list says otherwise.
func (r *Revocations) take(text []byte) {
	r.taking.Lock()
	defer r.taking.Unlock()
	if !bytes.Equal(text, r.text) {
		r.text = text
		close(r.other)
		r.other = make(chan struct{})
	}
}

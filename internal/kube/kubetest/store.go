package kubetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes/scheme"
	kjson "sigs.k8s.io/json"
)

// object is JSON. What is in the store is never changed, only replaced.
type object map[string]any

func (o object) sub(field string) object {
	m, _ := o[field].(map[string]any)
	return m
}

func (o object) text(field string) string {
	s, _ := o[field].(string)
	return s
}

func (o object) meta() object { return o.sub("metadata") }
func (o object) name() string { return o.meta().text("name") }

// clone copies the object and its metadata, not what is further below.
func (o object) clone() object {
	out := maps.Clone(o)
	meta := maps.Clone(o.meta())
	if meta == nil {
		meta = object{}
	}
	out["metadata"] = map[string]any(meta)
	return out
}

func (o object) finalizers() int {
	list, _ := o.meta()["finalizers"].([]any)
	return len(list)
}

func now() string { return time.Now().UTC().Format(time.RFC3339) }

func toObject(obj any) (object, error) {
	data, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	return parse(data)
}

func parse(data []byte) (object, error) {
	var o map[string]any
	err := kjson.UnmarshalCaseSensitivePreserveInts(data, &o)
	return o, err
}

func fromObject(o object, into any) error {
	data, err := json.Marshal(o)
	if err != nil {
		return err
	}
	v := reflect.ValueOf(into).Elem()
	v.Set(reflect.Zero(v.Type()))
	return json.Unmarshal(data, into)
}

// table holds the objects of a kind, by namespace/name.
type table struct {
	kindInfo
	objects map[string]object
}

func (t *table) key(o object) string { return t.keyOf(o.meta().text("namespace"), o.name()) }

func (t *table) keyOf(namespace, name string) string {
	if !t.namespaced {
		namespace = ""
	}
	return namespace + "/" + name
}

func (t *table) resource() schema.GroupResource {
	return schema.GroupResource{Group: t.group, Resource: t.plural}
}

// present returns an object in the words of a version.
func (t *table) present(o object, version string) object {
	out := maps.Clone(o)
	out["apiVersion"], out["kind"] = t.apiVersion(version), t.kind
	return out
}

// change is one step of the history.
type change struct {
	rv       uint64
	table    *table
	key      string
	old, new object // nil: was not there, is not there
}

// store is the state: objects, and how they became what they are.
type store struct {
	rv        uint64
	tables    map[schema.GroupResource]*table
	history   []change
	compacted uint64 // the history begins after this
	changed   chan struct{}
}

// maxHistory bounds the steps that can be watched from.
const maxHistory = 50_000

func newStore() *store {
	s := &store{rv: 1, tables: map[schema.GroupResource]*table{}, changed: make(chan struct{})}
	for _, k := range slices.Concat(builtinKinds(), customKinds) {
		s.define(k)
	}
	return s
}

func (s *store) define(k kindInfo) {
	at := schema.GroupResource{Group: k.group, Resource: k.plural}
	if t := s.tables[at]; t != nil {
		t.kindInfo = k
		return
	}
	s.tables[at] = &table{kindInfo: k, objects: map[string]object{}}
}

func (s *store) undefine(group, plural string) {
	at := schema.GroupResource{Group: group, Resource: plural}
	if t := s.tables[at]; t != nil {
		for _, key := range slices.Sorted(maps.Keys(t.objects)) {
			s.commit(t, key, nil)
		}
		delete(s.tables, at)
	}
}

// tableOf finds the kind of a typed object, or what it says it is.
func (s *store) tableOf(obj runtime.Object, o object) (*table, error) {
	gvk := schema.FromAPIVersionAndKind(o.text("apiVersion"), o.text("kind"))
	if gvk.Kind == "" {
		if known, _, err := scheme.Scheme.ObjectKinds(obj); err == nil {
			gvk = known[0]
		} else {
			gvk.Kind = reflect.TypeOf(obj).Elem().Name()
		}
	}
	var found []*table
	for _, t := range s.tables {
		if t.kind == gvk.Kind && (t.group == gvk.Group || gvk.Version == "") {
			found = append(found, t)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("%v is %d kinds to the test server: set apiVersion and kind, or Define it", gvk, len(found))
	}
	return found[0], nil
}

// commit makes o what is at key; nil removes.
func (s *store) commit(t *table, key string, o object) object {
	s.rv++
	old := t.objects[key]
	if o == nil {
		delete(t.objects, key)
	} else {
		o = o.clone()
		o.meta()["resourceVersion"] = strconv.FormatUint(s.rv, 10)
		delete(o, "apiVersion")
		delete(o, "kind")
		t.objects[key] = o
	}
	s.history = append(s.history, change{s.rv, t, key, old, o})
	if len(s.history) > maxHistory {
		half := len(s.history) / 2
		s.compacted = s.history[half-1].rv
		s.history = slices.Clone(s.history[half:])
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return o
}

func (s *store) compact() {
	s.compacted, s.history = s.rv, nil
}

// since returns the steps after rv; ok is false when they are forgotten.
func (s *store) since(rv uint64) (steps []change, ok bool) {
	if rv < s.compacted {
		return nil, false
	}
	i := sort.Search(len(s.history), func(i int) bool { return s.history[i].rv > rv })
	return s.history[i:], true
}

// at returns the objects of a table as they were at rv.
func (s *store) at(t *table, rv uint64) (map[string]object, bool) {
	steps, ok := s.since(rv)
	if !ok {
		return nil, false
	}
	objects := maps.Clone(t.objects)
	for i := len(steps) - 1; i >= 0; i-- {
		switch c := steps[i]; {
		case c.table != t:
		case c.old == nil:
			delete(objects, c.key)
		default:
			objects[c.key] = c.old
		}
	}
	return objects, true
}

// add, set and drop are the test's own hand.
func (s *store) add(t *table, o object) error {
	key := t.key(o)
	if _, ok := t.objects[key]; ok {
		return apierrors.NewAlreadyExists(t.resource(), o.name())
	}
	s.settle(t, s.commit(t, key, born(o)))
	return nil
}

func (s *store) set(t *table, o object) error {
	key := t.key(o)
	old, ok := t.objects[key]
	if !ok {
		return apierrors.NewNotFound(t.resource(), o.name())
	}
	s.settle(t, s.commit(t, key, succeed(t, old, o)))
	return nil
}

func (s *store) drop(t *table, o object) error {
	key := t.key(o)
	if _, ok := t.objects[key]; !ok {
		return apierrors.NewNotFound(t.resource(), o.name())
	}
	s.remove(t, key)
	return nil
}

// born fills in the metadata that the server gives a new object.
func born(o object) object {
	o = o.clone()
	m := o.meta()
	if m.text("uid") == "" {
		m["uid"] = string(uuid.NewUUID())
	}
	if m.text("creationTimestamp") == "" {
		m["creationTimestamp"] = now()
	}
	m["generation"] = int64(1)
	return o
}

// succeed keeps of the old metadata what clients cannot change, and counts
// changes of what was asked for.
func succeed(t *table, old, o object) object {
	o = o.clone()
	m, was := o.meta(), old.meta()
	for _, field := range []string{"uid", "creationTimestamp", "deletionTimestamp", "generation", "namespace", "name"} {
		if v, ok := was[field]; ok {
			m[field] = v
		} else if field != "namespace" {
			delete(m, field)
		}
	}
	asked := func(o object) object {
		o = maps.Clone(o)
		for _, field := range []string{"metadata", "status", "apiVersion", "kind"} {
			delete(o, field)
		}
		return o
	}
	if generation, ok := was["generation"].(int64); ok && !equality.Semantic.DeepEqual(asked(old), asked(o)) {
		m["generation"] = generation + 1
	}
	return o
}

// settle does what controllers of the real server do at once.
func (s *store) settle(t *table, o object) object {
	if t.plural == crdPlural {
		s.define(readCRD(o))
		if o.sub("status") == nil {
			return s.commit(t, t.key(o), establish(o))
		}
	}
	if o.meta().text("deletionTimestamp") != "" && o.finalizers() == 0 {
		s.remove(t, t.key(o))
	}
	return o
}

func (s *store) remove(t *table, key string) {
	o := t.objects[key]
	s.commit(t, key, nil)
	switch {
	case t.plural == crdPlural:
		k := readCRD(o)
		s.undefine(k.group, k.plural)
	case t.plural == "namespaces" && t.group == "":
		for _, other := range s.tables {
			for _, k := range slices.Sorted(maps.Keys(other.objects)) {
				if strings.HasPrefix(k, o.name()+"/") {
					s.commit(other, k, nil)
				}
			}
		}
	}
}

// create is a client's.
func (s *store) create(t *table, namespace string, o object, dry bool) (object, error) {
	o = born(o)
	m := o.meta()
	if t.namespaced {
		m["namespace"] = namespace
	}
	if o.name() == "" && m.text("generateName") != "" {
		m["name"] = m.text("generateName") + rand.String(5)
	}
	if o.name() == "" {
		return nil, apierrors.NewBadRequest("name or generateName is required")
	}
	key := t.key(o)
	if _, ok := t.objects[key]; ok {
		return nil, apierrors.NewAlreadyExists(t.resource(), o.name())
	}
	delete(m, "resourceVersion")
	if t.kind != "Node" {
		delete(o, "status")
	}
	if dry {
		return o, nil
	}
	return s.settle(t, s.commit(t, key, o)), nil
}

// update is a client's; subresource is status or empty.
func (s *store) update(t *table, key, subresource string, o object, dry bool) (object, error) {
	old, ok := t.objects[key]
	_, name, _ := strings.Cut(key, "/")
	if !ok {
		return nil, apierrors.NewNotFound(t.resource(), name)
	}
	if err := precondition(t, old, o.meta().text("uid"), o.meta().text("resourceVersion")); err != nil {
		return nil, err
	}
	if subresource == "status" {
		o = statusOf(t, old, o)
	} else {
		o = withStatus(o, old["status"])
	}
	o = succeed(t, old, o)
	switch {
	case same(old, o):
		return old, nil
	case dry:
		return o, nil
	}
	return s.settle(t, s.commit(t, key, o)), nil
}

func withStatus(o object, status any) object {
	o = maps.Clone(o)
	delete(o, "status")
	if status != nil {
		o["status"] = status
	}
	return o
}

// statusOf is an update of the status: of built-in kinds the metadata is
// taken along, of others nothing else.
func statusOf(t *table, old, o object) object {
	out := withStatus(old, o["status"]).clone()
	if !t.custom {
		for _, field := range []string{"labels", "annotations", "finalizers"} {
			delete(out.meta(), field)
			if v, ok := o.meta()[field]; ok {
				out.meta()[field] = v
			}
		}
	}
	return out
}

func same(a, b object) bool {
	strip := func(o object) object {
		o = o.clone()
		delete(o.meta(), "resourceVersion")
		delete(o, "apiVersion")
		delete(o, "kind")
		return o
	}
	return equality.Semantic.DeepEqual(strip(a), strip(b))
}

func precondition(t *table, o object, uid, rv string) error {
	if have := o.meta().text("uid"); uid != "" && uid != have {
		return apierrors.NewConflict(t.resource(), o.name(), fmt.Errorf("precondition failed: UID in precondition: %s, UID in object meta: %s", types.UID(uid), have))
	}
	if rv != "" && rv != o.meta().text("resourceVersion") {
		return apierrors.NewConflict(t.resource(), o.name(), fmt.Errorf("the object has been modified; please apply your changes to the latest version and try again"))
	}
	return nil
}

// delete is a client's.
func (s *store) delete(t *table, key, uid, rv string, dry bool) error {
	o, ok := t.objects[key]
	if !ok {
		_, name, _ := strings.Cut(key, "/")
		return apierrors.NewNotFound(t.resource(), name)
	}
	if err := precondition(t, o, uid, rv); err != nil || dry {
		return err
	}
	if o.finalizers() == 0 {
		s.remove(t, key)
		return nil
	}
	if o.meta().text("deletionTimestamp") == "" {
		o = o.clone()
		o.meta()["deletionTimestamp"] = now()
		s.commit(t, key, o)
	}
	return nil
}

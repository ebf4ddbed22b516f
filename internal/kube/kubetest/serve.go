package kubetest

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// request is a request of the API, taken apart.
type request struct {
	*http.Request
	query                                  url.Values
	group, version                         string
	namespace, resource, name, subresource string
	table                                  *table // nil: no such resource
	metadataOnly                           bool
}

// maxBody bounds a request, like the real server.
const maxBody = 3 << 20

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := s.handler(r.URL.Path); h != nil {
		h.ServeHTTP(w, r)
		return
	}
	q := split(r)
	if q.resource == "" {
		s.discovery(w, r.URL.Path)
		return
	}
	verb := q.verb()
	s.mu.Lock()
	fault := s.fault
	s.requests[verb+" "+q.full()]++
	q.table = s.store.tables[schema.GroupResource{Group: q.group, Resource: q.resource}]
	if q.table != nil && !slices.Contains(q.table.versions, q.version) {
		q.table = nil
	}
	s.mu.Unlock()
	if fault != nil {
		if code := fault(verb, q.full(), q.name); code != 0 {
			fail(w, apierrors.NewGenericServerResponse(code, verb, schema.GroupResource{Group: q.group, Resource: q.resource}, q.name, "on demand of the test", 0, true))
			return
		}
	}
	if q.table == nil {
		http.NotFound(w, r) // as the real server, which has no words for it
		return
	}
	if verb == "watch" {
		s.watch(w, q)
		return
	}
	code, body, err := s.do(verb, q)
	if err != nil {
		fail(w, err)
		return
	}
	reply(w, code, body)
}

// split reads the path. resource is empty for what is not about objects.
func split(r *http.Request) *request {
	q := &request{Request: r, query: r.URL.Query()}
	q.metadataOnly = strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case len(parts) >= 3 && parts[0] == "api":
		q.version, parts = parts[1], parts[2:]
	case len(parts) >= 4 && parts[0] == "apis":
		q.group, q.version, parts = parts[1], parts[2], parts[3:]
	default:
		return q
	}
	ofNamespace := len(parts) == 3 && (parts[2] == "status" || parts[2] == "finalize")
	if parts[0] == "namespaces" && len(parts) >= 3 && !ofNamespace {
		q.namespace, parts = parts[1], parts[2:]
	}
	q.resource = parts[0]
	if len(parts) > 1 {
		q.name = parts[1]
	}
	q.subresource = strings.Join(parts[min(2, len(parts)):], "/")
	return q
}

func (q *request) full() string {
	if q.subresource == "" {
		return q.resource
	}
	return q.resource + "/" + q.subresource
}

func (q *request) verb() string {
	switch q.Method {
	case http.MethodGet:
		switch {
		case q.query.Get("watch") == "true" || q.query.Get("watch") == "1":
			return "watch"
		case q.name == "":
			return "list"
		}
		return "get"
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		if q.name == "" {
			return "deletecollection"
		}
		return "delete"
	}
	return strings.ToLower(q.Method)
}

func (q *request) dry() bool { return q.query.Get("dryRun") == metav1.DryRunAll }

func (q *request) key() string { return q.table.keyOf(q.namespace, q.name) }

// show is an object as this request wants it.
func (q *request) show(o object) object {
	if q.metadataOnly {
		return object{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": o["metadata"]}
	}
	return q.table.present(o, q.version)
}

// do answers everything but watches.
func (s *Server) do(verb string, q *request) (int, object, error) {
	body, err := io.ReadAll(io.LimitReader(q.Body, maxBody))
	if err != nil {
		return 0, nil, apierrors.NewBadRequest(err.Error())
	}
	if verb == "create" && q.name == "" && strings.HasSuffix(q.resource, "reviews") {
		return s.review(q, body)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.subresource == "eviction" && verb == "create" {
		verb, q.subresource = "delete", ""
	}
	if q.subresource != "" && q.subresource != "status" {
		return 0, nil, apierrors.NewNotFound(q.table.resource(), q.name+"/"+q.subresource)
	}
	switch verb {
	case "list":
		out, err := s.store.list(q)
		return http.StatusOK, out, err
	case "get":
		o, ok := q.table.objects[q.key()]
		if !ok {
			return 0, nil, apierrors.NewNotFound(q.table.resource(), q.name)
		}
		return http.StatusOK, q.show(o), nil
	case "create", "update":
		return s.write(verb, q, body)
	case "patch":
		return s.patch(q, body)
	case "delete":
		return s.delete(q, body)
	case "deletecollection":
		return s.deleteAll(q)
	}
	return 0, nil, apierrors.NewMethodNotSupported(q.table.resource(), verb)
}

func (s *Server) write(verb string, q *request, body []byte) (int, object, error) {
	if kind := q.Header.Get("Content-Type"); kind != "" && !strings.HasPrefix(kind, "application/json") {
		return 0, nil, apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, verb, q.table.resource(), q.name, "the test server reads JSON only, not "+kind, 0, true)
	}
	o, err := parse(body)
	if err != nil || o == nil {
		return 0, nil, apierrors.NewBadRequest(fmt.Sprintf("not a JSON object: %v", err))
	}
	code := http.StatusOK
	if verb == "create" {
		code = http.StatusCreated
		o, err = s.store.create(q.table, q.namespace, o, q.dry())
	} else {
		o, err = s.store.update(q.table, q.key(), q.subresource, o, q.dry())
	}
	if err != nil {
		return 0, nil, err
	}
	return code, q.show(o), nil
}

func (s *Server) delete(q *request, body []byte) (int, object, error) {
	var opts metav1.DeleteOptions
	if len(body) > 0 {
		if err := json.Unmarshal(body, &opts); err != nil {
			return 0, nil, apierrors.NewBadRequest(err.Error())
		}
	}
	var uid, rv string
	if p := opts.Preconditions; p != nil {
		if p.UID != nil {
			uid = string(*p.UID)
		}
		if p.ResourceVersion != nil {
			rv = *p.ResourceVersion
		}
	}
	if err := s.store.delete(q.table, q.key(), uid, rv, q.dry() || len(opts.DryRun) > 0); err != nil {
		return 0, nil, err
	}
	return http.StatusOK, success(), nil
}

func success() object {
	return object{"apiVersion": "v1", "kind": "Status", "metadata": map[string]any{}, "status": "Success", "code": int64(http.StatusOK)}
}

func (s *Server) deleteAll(q *request) (int, object, error) {
	match, err := q.matcher()
	if err != nil {
		return 0, nil, err
	}
	for key, o := range maps.Clone(q.table.objects) {
		if match(o) {
			if err := s.store.delete(q.table, key, "", "", q.dry()); err != nil && !apierrors.IsNotFound(err) {
				return 0, nil, err
			}
		}
	}
	return http.StatusOK, success(), nil
}

// review answers what is asked by creating it and is stored nowhere.
func (s *Server) review(q *request, body []byte) (int, object, error) {
	if q.resource != "tokenreviews" {
		o, err := parse(body)
		if err != nil {
			return 0, nil, apierrors.NewBadRequest(err.Error())
		}
		o["status"] = map[string]any{"allowed": true}
		return http.StatusCreated, q.show(o), nil
	}
	var review authenticationv1.TokenReview
	if err := json.Unmarshal(body, &review); err != nil {
		return 0, nil, apierrors.NewBadRequest(err.Error())
	}
	s.mu.Lock()
	decide := s.tokenReview
	s.mu.Unlock()
	if decide != nil {
		decide(&review)
	}
	o, err := toObject(review)
	return http.StatusCreated, q.show(o), err
}

// matcher is the request's namespace and selectors.
func (q *request) matcher() (func(object) bool, error) {
	byLabel, err := labels.Parse(q.query.Get("labelSelector"))
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	byField, err := fields.ParseSelector(q.query.Get("fieldSelector"))
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return func(o object) bool {
		if o == nil || q.namespace != "" && o.meta().text("namespace") != q.namespace {
			return false
		}
		if !byField.Empty() && !byField.Matches(fieldsOf{o}) {
			return false
		}
		set := labels.Set{}
		for k, v := range o.meta().sub("labels") {
			set[k], _ = v.(string)
		}
		return byLabel.Matches(set)
	}, nil
}

// fieldsOf finds any field by its path; the real server knows only a few.
type fieldsOf struct{ object }

func (f fieldsOf) Has(string) bool { return true }

func (f fieldsOf) Get(path string) string {
	steps := strings.Split(path, ".")
	o := f.object
	for _, step := range steps[:len(steps)-1] {
		o = o.sub(step)
	}
	switch v := o[steps[len(steps)-1]].(type) {
	case nil:
		return ""
	case string:
		return v
	default:
		return fmt.Sprint(v)
	}
}

// page is a continue token: where the next page of which state begins.
type page struct {
	RV    uint64
	After string
}

func (s *store) list(q *request) (object, error) {
	match, err := q.matcher()
	if err != nil {
		return nil, err
	}
	from := page{RV: s.rv}
	if token := q.query.Get("continue"); token != "" {
		data, err := base64.RawURLEncoding.DecodeString(token)
		if err == nil {
			err = json.Unmarshal(data, &from)
		}
		if err != nil {
			return nil, apierrors.NewBadRequest("continue token: " + err.Error())
		}
	}
	objects, ok := s.at(q.table, from.RV)
	if !ok {
		return nil, apierrors.NewResourceExpired("the provided continue parameter is too old")
	}
	limit, _ := strconv.Atoi(q.query.Get("limit"))
	items, meta := []any{}, map[string]any{"resourceVersion": strconv.FormatUint(from.RV, 10)}
	last := ""
	for _, key := range slices.Sorted(maps.Keys(objects)) {
		if key <= from.After || !match(objects[key]) {
			continue
		}
		if limit > 0 && len(items) == limit {
			token, _ := json.Marshal(page{from.RV, last}) // two plain values
			meta["continue"] = base64.RawURLEncoding.EncodeToString(token)
			break
		}
		items = append(items, map[string]any(q.show(objects[key])))
		last = key
	}
	kind, version := q.table.kind, q.table.apiVersion(q.version)
	if q.metadataOnly {
		kind, version = "PartialObjectMetadata", "meta.k8s.io/v1"
	}
	return object{"apiVersion": version, "kind": kind + "List", "metadata": meta, "items": items}, nil
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client may be gone
}

func fail(w http.ResponseWriter, err error) {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		status = apierrors.NewInternalError(err)
	}
	st := status.Status()
	st.APIVersion, st.Kind = "v1", "Status"
	reply(w, int(st.Code), st)
}

// discovery tells which groups, versions and resources there are.
func (s *Server) discovery(w http.ResponseWriter, path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	parts := strings.Split(strings.Trim(path, "/"), "/")
	switch {
	case path == "/version":
		reply(w, http.StatusOK, map[string]string{"major": "1", "minor": "36", "gitVersion": "v1.36.0"})
	case path == "/healthz" || path == "/readyz" || path == "/livez":
		_, _ = io.WriteString(w, "ok")
	case path == "/api":
		reply(w, http.StatusOK, metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}})
	case path == "/apis":
		list := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
		list.Groups = append(list.Groups, s.store.groups()...)
		reply(w, http.StatusOK, list)
	case len(parts) == 2 && parts[0] == "apis":
		for _, g := range s.store.groups() {
			if g.Name == parts[1] {
				g.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
				reply(w, http.StatusOK, g)
				return
			}
		}
		http.Error(w, "404 page not found", http.StatusNotFound)
	case len(parts) == 2 && parts[0] == "api":
		s.resources(w, "", parts[1])
	case len(parts) == 3 && parts[0] == "apis":
		s.resources(w, parts[1], parts[2])
	default:
		http.Error(w, "404 page not found", http.StatusNotFound)
	}
}

// sorted returns the tables in the order of their group and name.
func (s *store) sorted() []*table {
	return slices.SortedFunc(maps.Values(s.tables), func(a, b *table) int {
		return strings.Compare(a.group+"/"+a.plural, b.group+"/"+b.plural)
	})
}

func (s *store) groups() []metav1.APIGroup {
	var out []metav1.APIGroup
	for _, t := range s.sorted() {
		if t.group == "" {
			continue
		}
		if len(out) == 0 || out[len(out)-1].Name != t.group {
			out = append(out, metav1.APIGroup{Name: t.group})
		}
		g := &out[len(out)-1]
		for _, v := range t.versions {
			gv := metav1.GroupVersionForDiscovery{GroupVersion: t.apiVersion(v), Version: v}
			if !slices.Contains(g.Versions, gv) {
				g.Versions = append(g.Versions, gv)
			}
		}
		if len(g.Versions) > 0 {
			g.PreferredVersion = g.Versions[0]
		}
	}
	return out
}

var allVerbs = metav1.Verbs{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

func (s *Server) resources(w http.ResponseWriter, group, version string) {
	list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}}
	for _, t := range s.store.sorted() {
		if t.group != group || !slices.Contains(t.versions, version) {
			continue
		}
		list.GroupVersion = t.apiVersion(version)
		r := metav1.APIResource{Name: t.plural, SingularName: strings.ToLower(t.kind), Namespaced: t.namespaced, Kind: t.kind, Verbs: allVerbs}
		list.APIResources = append(list.APIResources, r)
		r.Name, r.Verbs = r.Name+"/status", metav1.Verbs{"get", "patch", "update"}
		list.APIResources = append(list.APIResources, r)
	}
	if list.GroupVersion == "" {
		http.Error(w, "404 page not found", http.StatusNotFound)
		return
	}
	reply(w, http.StatusOK, list)
}

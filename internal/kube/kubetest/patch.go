package kubetest

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

func (s *Server) patch(q *request, body []byte) (int, object, error) {
	kind, _, _ := strings.Cut(q.Header.Get("Content-Type"), ";")
	old, ok := q.table.objects[q.key()]
	apply := types.PatchType(kind) == types.ApplyYAMLPatchType
	if apply {
		data, err := yaml.YAMLToJSON(body)
		if err != nil {
			return 0, nil, apierrors.NewBadRequest(err.Error())
		}
		body = data
	}
	if !ok {
		if !apply || q.subresource != "" {
			return 0, nil, apierrors.NewNotFound(q.table.resource(), q.name)
		}
		o, err := parse(body)
		if err != nil {
			return 0, nil, apierrors.NewBadRequest(err.Error())
		}
		o, err = s.store.create(q.table, q.namespace, o, q.dry())
		if err != nil {
			return 0, nil, err
		}
		return http.StatusCreated, q.show(o), nil
	}
	// What the patch does not say must not count as a precondition.
	base := old.clone()
	delete(base.meta(), "resourceVersion")
	next, err := patched(types.PatchType(kind), q.table.present(base, q.version), body)
	if err != nil {
		return 0, nil, apierrors.NewBadRequest(err.Error())
	}
	o, err := s.store.update(q.table, q.key(), q.subresource, next, q.dry())
	if err != nil {
		return 0, nil, err
	}
	return http.StatusOK, q.show(o), nil
}

// patched applies a patch to an object in the words of a version.
func patched(kind types.PatchType, o object, body []byte) (object, error) {
	var (
		out      []byte
		data, _  = json.Marshal(o) // was JSON before
		typed, _ = scheme.Scheme.New(schema.FromAPIVersionAndKind(o.text("apiVersion"), o.text("kind")))
	)
	// Only types that are compiled in say how their lists merge.
	if typed == nil && kind == types.ApplyYAMLPatchType {
		kind = types.MergePatchType
	}
	if typed == nil && kind == types.StrategicMergePatchType {
		return nil, errors.New("there is no strategic merge of custom resources")
	}
	var err error
	switch kind {
	case types.StrategicMergePatchType, types.ApplyYAMLPatchType:
		out, err = strategicpatch.StrategicMergePatch(data, body, typed)
	case types.JSONPatchType:
		var p jsonpatch.Patch
		if p, err = jsonpatch.DecodePatch(body); err == nil {
			out, err = p.Apply(data)
		}
	default:
		p, err := parse(body)
		if err != nil {
			return nil, err
		}
		return merge(o, p), nil
	}
	if err != nil {
		return nil, err
	}
	return parse(out)
}

// merge is RFC 7386.
func merge(o, patch map[string]any) map[string]any {
	out := maps.Clone(o)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(out, k)
		case map[string]any:
			below, _ := out[k].(map[string]any)
			out[k] = merge(below, v)
		default:
			out[k] = v
		}
	}
	return out
}

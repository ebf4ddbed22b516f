package file

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/source"
)

// specFields are the fields of spec that Kubernetes itself fills in, and an
// overlay may.
var specFields = []string{"nodeName", "clusterIP", "clusterIPs", "ipFamilies"}

// metaFields are those of metadata that an overlay carries.
var metaFields = []string{"name", "namespace", "uid", "annotations", "labels", "deletionTimestamp", "deletionGracePeriodSeconds"}

// WriteOverlay writes what its caller knows about obj (metadata uid,
// annotations, labels and time of deletion, spec.nodeName, spec.clusterIP(s), status; nothing
// else of it is written) to dir/writer, atomically. Sources merge it over the
// object of the same key: annotations one by one, status by its top level
// fields, uid, time of deletion, labels, nodeName and cluster addresses where the object has
// none. An overlay without its object is ignored. Pass only what you own: an
// annotation copied from the object would outlive its removal there.
func WriteOverlay(dir, writer string, obj metav1.Object) error {
	key, ok := source.KeyOf(obj)
	if !ok {
		return fmt.Errorf("status of %T: not a kind the mesh reads", obj)
	}
	doc, err := overlayOf(key, obj)
	if err != nil {
		return fmt.Errorf("status of %s: %w", key, err)
	}
	text, err := yaml.Marshal(doc)
	if err != nil {
		return fmt.Errorf("status of %s: %w", key, err)
	}
	path := overlayPath(dir, writer, key)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("status of %s: %w", key, err)
	}
	return replace(path, text)
}

// RemoveOverlay removes what WriteOverlay wrote; it is no error when there is
// nothing.
func RemoveOverlay(dir, writer string, key source.Key) error {
	err := os.Remove(overlayPath(dir, writer, key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func overlayPath(dir, writer string, key source.Key) string {
	return filepath.Join(dir, writer, strings.ToLower(key.Kind.String())+"."+key.Namespace+"."+key.Name+".yaml")
}

// replace writes a file so that readers see the old or the new one, whole.
func replace(path string, text []byte) (err error) {
	// The dot keeps the unfinished file invisible to the reader.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".overlay-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	_, werr := tmp.Write(text)
	if err := errors.Join(werr, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func overlayOf(key source.Key, obj metav1.Object) (map[string]any, error) {
	data, err := json.Marshal(obj)
	if err != nil {
		return nil, err
	}
	var full map[string]any
	if err := json.Unmarshal(data, &full); err != nil {
		return nil, err
	}
	doc := map[string]any{
		"apiVersion": key.Kind.APIVersion(),
		"kind":       key.Kind.Name,
		"metadata":   pick(full["metadata"], metaFields),
	}
	if spec := pick(full["spec"], specFields); len(spec) > 0 {
		doc["spec"] = spec
	}
	if status, _ := full["status"].(map[string]any); len(status) > 0 {
		doc["status"] = status
	}
	return doc, nil
}

func pick(from any, fields []string) map[string]any {
	in, _ := from.(map[string]any)
	out := map[string]any{}
	for _, f := range fields {
		if v, ok := in[f]; ok && v != nil && v != "" {
			out[f] = v
		}
	}
	return out
}

// merge lays overlays over an object, in order. Inputs are JSON objects.
func merge(object []byte, overlays [][]byte) ([]byte, error) {
	var base map[string]any
	if err := json.Unmarshal(object, &base); err != nil {
		return nil, err
	}
	for _, o := range overlays {
		var over map[string]any
		if err := json.Unmarshal(o, &over); err != nil {
			return nil, err
		}
		mergeMeta(sub(base, "metadata"), over["metadata"])
		mergeSpec(base, over["spec"])
		if status, ok := over["status"].(map[string]any); ok {
			set(sub(base, "status"), status, true)
		}
	}
	return json.Marshal(base)
}

func mergeMeta(base map[string]any, from any) {
	over, _ := from.(map[string]any)
	fill(base, over, "uid")
	fill(base, over, "deletionTimestamp")
	fill(base, over, "deletionGracePeriodSeconds")
	if a, ok := over["annotations"].(map[string]any); ok {
		set(sub(base, "annotations"), a, true)
	}
	if l, ok := over["labels"].(map[string]any); ok {
		set(sub(base, "labels"), l, false)
	}
}

func mergeSpec(base map[string]any, from any) {
	over, _ := from.(map[string]any)
	if len(over) == 0 {
		return
	}
	spec := sub(base, "spec")
	fill(spec, over, "nodeName")
	fill(spec, over, "ipFamilies")
	if absent(spec["clusterIP"]) && absent(spec["clusterIPs"]) {
		// One decision: "None" written by the user must not gain addresses.
		fill(spec, over, "clusterIP")
		fill(spec, over, "clusterIPs")
	}
}

func sub(m map[string]any, key string) map[string]any {
	s, ok := m[key].(map[string]any)
	if !ok {
		s = map[string]any{}
		m[key] = s
	}
	return s
}

func set(base, over map[string]any, replace bool) {
	for k, v := range over {
		if _, there := base[k]; !there || replace {
			base[k] = v
		}
	}
}

func fill(base, over map[string]any, key string) {
	if v, ok := over[key]; ok && absent(base[key]) {
		base[key] = v
	}
}

func absent(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	}
	return false
}

// Package cniconf puts the mesh's CNI plugin onto a node and keeps it there: its
// binary, and its entry in the network configuration that the container runtime
// reads. What the configuration says beside is passed on as it is.
//
// The runtime uses the first file of its directory. So does this package, and it
// looks again whenever the directory changes: another program may write its file
// anew, or add one that comes first.
package cniconf

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// EntryName is the name of the plugin's entry; it tells ours from others.
const EntryName = "ambit-cni"

// Entry is the plugin's entry in a list of plugins.
type Entry struct {
	Type string `json:"type"` // the name of the binary
	Name string `json:"name"`
	// Version says which agent wrote the entry.
	Version           string   `json:"ambit_version,omitempty"`
	RunDir            string   `json:"cni_agent_run_dir,omitempty"` // where the agent's socket is
	PodNamespace      string   `json:"pod_namespace,omitempty"`     // of the mesh's own pods
	ExcludeNamespaces []string `json:"exclude_namespaces,omitempty"`
}

// document is a JSON object whose values are kept as they were written.
type document map[string]json.RawMessage

var errNoPlugins = errors.New("it names no plugin")

// parse reads a file of the directory: a list of plugins, or a single plugin,
// which is made a list of one.
func parse(text []byte) (list document, plugins []json.RawMessage, err error) {
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, nil, err
	}
	if raw, ok := list["plugins"]; ok {
		if err := json.Unmarshal(raw, &plugins); err != nil {
			return nil, nil, fmt.Errorf("plugins: %w", err)
		}
		if len(plugins) == 0 {
			return nil, nil, errNoPlugins
		}
		for _, p := range plugins {
			if typeOf(p) == "" {
				return nil, nil, errors.New("plugins: one has no type")
			}
		}
		return list, plugins, nil
	}
	if typeOf(text) == "" {
		return nil, nil, errNoPlugins
	}
	plugin := list
	list = document{}
	for _, key := range []string{"cniVersion", "name"} {
		if v, ok := plugin[key]; ok {
			list[key] = v
			delete(plugin, key)
		}
	}
	raw, err := json.Marshal(plugin)
	return list, []json.RawMessage{raw}, err
}

func typeOf(plugin []byte) string {
	var p struct{ Type string }
	if json.Unmarshal(plugin, &p) != nil {
		return ""
	}
	return p.Type
}

// isOurs reports whether an entry is one that an agent of the mesh has written.
func isOurs(plugin []byte) bool {
	var p struct{ Name string }
	return json.Unmarshal(plugin, &p) == nil && p.Name == EntryName
}

func without(plugins []json.RawMessage) []json.RawMessage {
	var others []json.RawMessage
	for _, p := range plugins {
		if !isOurs(p) {
			others = append(others, p)
		}
	}
	return others
}

// Insert returns a list of plugins with the entry last and nowhere else. text is
// a list or a single plugin. changed is false when text is that already.
func Insert(text []byte, e Entry) (list []byte, changed bool, err error) {
	doc, plugins, err := parse(text)
	if err != nil {
		return nil, false, err
	}
	entry, err := json.Marshal(e)
	if err != nil {
		return nil, false, err
	}
	others := without(plugins)
	if len(others) == 0 {
		return nil, false, errNoPlugins
	}
	last := plugins[len(plugins)-1]
	if len(others) == len(plugins)-1 && same(last, entry) {
		return text, false, nil
	}
	list, err = render(doc, append(others, entry))
	return list, true, err
}

// Remove returns a list of plugins without the entry; changed is false when
// there is none, or when text is not a list of plugins.
func Remove(text []byte) (list []byte, changed bool) {
	doc, plugins, err := parse(text)
	if err != nil {
		return text, false
	}
	others := without(plugins)
	if len(others) == len(plugins) || len(others) == 0 {
		return text, false
	}
	list, err = render(doc, others)
	return list, err == nil
}

func render(doc document, plugins []json.RawMessage) ([]byte, error) {
	raw, err := json.Marshal(plugins)
	if err != nil {
		return nil, err
	}
	doc["plugins"] = raw
	return indent(doc)
}

// standalone is a configuration of the plugin alone, for a runtime that calls it
// by another configuration.
func standalone(e Entry) ([]byte, error) {
	entry, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	var doc document
	if err := json.Unmarshal(entry, &doc); err != nil {
		return nil, err
	}
	doc["cniVersion"] = json.RawMessage(`"0.3.1"`)
	return indent(doc)
}

func indent(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(v)
	return b.Bytes(), err
}

// same compares two JSON texts by what they mean.
func same(a, b []byte) bool {
	var x, y bytes.Buffer
	return canonical(&x, a) == nil && canonical(&y, b) == nil && bytes.Equal(x.Bytes(), y.Bytes())
}

func canonical(out *bytes.Buffer, text []byte) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(v)
}

package meshconfig

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	meshv1alpha1 "istio.io/api/mesh/v1alpha1"
)

// observed are the fields about telemetry, as they are called in JSON and in the
// protobuf. Of defaultConfig, tracing counts.
var observed = []string{
	"extensionProviders", "extension_providers", "defaultProviders", "default_providers", "defaultConfig", "default_config",
	"accessLogFile", "access_log_file", "accessLogFormat", "access_log_format", "accessLogEncoding", "access_log_encoding",
}

// observe takes over the fields about telemetry. A field that a newer version has is
// skipped; a value that is none of its field is an error.
func (c *Config) observe(all map[string]json.RawMessage) error {
	part := map[string]json.RawMessage{}
	for name, value := range all {
		if !slices.Contains(observed, name) {
			continue
		}
		if name == extensionProviders || name == extensionProvidersProto {
			var err error
			if value, err = readable(value); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if strings.EqualFold(strings.ReplaceAll(name, "_", ""), "defaultConfig") {
			var fields map[string]json.RawMessage
			if err := json.Unmarshal(value, &fields); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if fields["tracing"] == nil {
				continue
			}
			value, _ = json.Marshal(map[string]json.RawMessage{"tracing": fields["tracing"]}) // was JSON
		}
		part[name] = value
	}
	if len(part) == 0 {
		return nil
	}
	text, err := json.Marshal(part)
	if err != nil {
		return err
	}
	m := &meshv1alpha1.MeshConfig{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, m); err != nil {
		return err
	}
	c.Telemetry = m
	return nil
}

// readable returns the providers that can be read. Of the others, only the name is left:
// what names one of them is refused, and a mistake in one is that provider's alone.
func readable(value json.RawMessage) (json.RawMessage, error) {
	var entries []json.RawMessage
	if err := json.Unmarshal(value, &entries); err != nil {
		return nil, err
	}
	for i, text := range entries {
		if pb, err := readEntry(text, true); err == nil {
			if entries[i], err = protojson.Marshal(pb); err != nil {
				return nil, err
			}
			continue
		}
		var named struct {
			Name string `json:"name"`
		}
		_ = json.Unmarshal(text, &named) // without a name, it has no user
		var err error
		if entries[i], err = json.Marshal(map[string]string{"name": named.Name}); err != nil {
			return nil, err
		}
	}
	return json.Marshal(entries)
}

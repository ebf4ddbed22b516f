package extauthz

import (
	"encoding/json"
	"fmt"
	"maps"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

// MetadataNamespace is where Envoy keeps the metadata of external authorizers.
const MetadataNamespace = "envoy.filters.http.ext_authz"

// Bounds of the metadata of one answer.
const (
	maxMetadata      = 8 << 10 // bytes
	maxMetadataDepth = 16
)

// Metadata is what authorizers have found out of a request. It is immutable. The nil
// Metadata is empty.
type Metadata struct{ fields map[string]*structpb.Value }

// NewMetadata takes the metadata of an answer.
func NewMetadata(pb *structpb.Struct) (*Metadata, error) {
	switch n := proto.Size(pb); {
	case len(pb.GetFields()) == 0:
		return nil, nil //nolint:nilnil // the nil Metadata is empty
	case n > maxMetadata:
		return nil, fmt.Errorf("its dynamic_metadata has %d bytes (at most %d are possible)", n, maxMetadata)
	case deeper(structpb.NewStructValue(pb), maxMetadataDepth):
		return nil, fmt.Errorf("its dynamic_metadata is nested deeper than %d times", maxMetadataDepth)
	}
	return &Metadata{pb.GetFields()}, nil
}

// deeper reports whether a value has more than n levels.
func deeper(v *structpb.Value, n int) bool {
	if n < 0 {
		return true
	}
	for _, below := range v.GetStructValue().GetFields() {
		if deeper(below, n-1) {
			return true
		}
	}
	for _, below := range v.GetListValue().GetValues() {
		if deeper(below, n-1) {
			return true
		}
	}
	return false
}

// With returns the metadata with that of a later answer: a key of that replaces the same
// key.
func (m *Metadata) With(later *Metadata) *Metadata {
	switch {
	case later == nil:
		return m
	case m == nil:
		return later
	}
	all := maps.Clone(m.fields)
	maps.Copy(all, later.fields)
	return &Metadata{all}
}

// proto returns the metadata as authorizers get it; nil for none.
func (m *Metadata) proto() *structpb.Struct {
	if m == nil {
		return nil
	}
	return &structpb.Struct{Fields: m.fields}
}

// Values returns the metadata as values of Go.
func (m *Metadata) Values() map[string]any { return m.proto().AsMap() }

// value returns what is at a path of keys; nil without one.
func (m *Metadata) value(path []string) *structpb.Value {
	v := structpb.NewStructValue(m.proto())
	for _, key := range path {
		if v = v.GetStructValue().GetFields()[key]; v == nil {
			return nil
		}
	}
	return v
}

// Match reports whether the value at a path of keys fits, or one of the values of a list.
// A text, a number, and true and false are values.
func (m *Metadata) Match(path []string, fits func(string) bool) bool {
	if m == nil {
		return false
	}
	v := m.value(path)
	if s, ok := scalar(v); ok {
		return fits(s)
	}
	for _, one := range v.GetListValue().GetValues() {
		if s, ok := scalar(one); ok && fits(s) {
			return true
		}
	}
	return false
}

// scalar returns a value as text.
func scalar(v *structpb.Value) (string, bool) {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return k.StringValue, true
	case *structpb.Value_BoolValue:
		return strconv.FormatBool(k.BoolValue), true
	case *structpb.Value_NumberValue:
		return strconv.FormatFloat(k.NumberValue, 'f', -1, 64), true
	}
	return "", false
}

// Append appends what is at a path of keys: a text as it is, and others as JSON. Without a
// value it appends nothing.
func (m *Metadata) Append(b []byte, path []string) []byte {
	if m == nil {
		return b
	}
	v := m.value(path)
	switch k := v.GetKind().(type) {
	case nil, *structpb.Value_NullValue:
		return b
	case *structpb.Value_StringValue:
		return append(b, k.StringValue...)
	}
	text, err := json.Marshal(v.AsInterface())
	if err != nil {
		return b // a number that JSON does not have
	}
	return append(b, text...)
}

package file

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"github.com/ambit-mesh/ambit/internal/source"
)

// decodeError is a mistake at a byte of the JSON (-1: unknown) or in a field.
type decodeError struct {
	offset int
	field  string
	msg    string
}

// decode makes the typed object, strictly: every field must exist and have
// its type. All mistakes are returned, at most maxErrors.
func decode(kind *source.Kind, key source.Key, data []byte) (metav1.Object, []decodeError) {
	obj, errs := decodeObject(kind, data)
	if len(errs) > 0 {
		return nil, errs
	}
	obj.SetName(key.Name)
	obj.SetNamespace(key.Namespace)
	if kind.Default != nil {
		kind.Default(obj)
	}
	return obj, nil
}

// decodeObject returns what could be read beside the mistakes.
func decodeObject(kind *source.Kind, data []byte) (metav1.Object, []decodeError) {
	obj := kind.New()
	if kind.Messages != nil {
		return obj, decodeProto(kind, obj, data)
	}
	return obj, decodeJSON(obj, data, 0)
}

const noSuchField = "there is no such field"

// maxErrors of one object are reported: enough to mend it, too few to flood.
const maxErrors = 10

func decodeJSON(into any, data []byte, base int) []decodeError {
	strict, err := kjson.UnmarshalStrict(data, into)
	var errs []decodeError
	if err != nil {
		e := decodeError{offset: -1, msg: strings.TrimPrefix(err.Error(), "json: ")}
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			e.offset = base + int(wrong.Offset) - 1
			e.msg = fmt.Sprintf("expected %s, found %s", typeName(wrong.Type.String()), wrong.Value)
		}
		errs = append(errs, e)
	}
	for _, s := range strict {
		if len(errs) == maxErrors {
			break
		}
		e := decodeError{offset: -1, msg: s.Error()}
		if m := quoted.FindStringSubmatch(s.Error()); m != nil {
			e.field, e.msg = m[1], noSuchField
		}
		errs = append(errs, e)
	}
	return errs
}

var quoted = regexp.MustCompile(`^unknown field "([^"]*)"$`)

// typeName says a Go type in the words of a manifest.
func typeName(t string) string {
	switch {
	case strings.HasPrefix(t, "int"), strings.HasPrefix(t, "uint"):
		return "a whole number"
	case t == "string":
		return "a string"
	case t == "bool":
		return "true or false"
	case strings.HasPrefix(t, "[]"):
		return "a list"
	}
	return "an object"
}

// decodeProto reads an object whose spec and status are protobuf messages. The
// readers generated for clients accept unknown fields silently.
func decodeProto(kind *source.Kind, obj metav1.Object, data []byte) []decodeError {
	var top map[string]json.RawMessage
	if err := json.Unmarshal(data, &top); err != nil {
		return []decodeError{{offset: -1, msg: err.Error()}}
	}
	fields := make([]string, 0, len(top))
	for f := range top {
		fields = append(fields, f)
	}
	slices.Sort(fields)
	spec, status := kind.Messages(obj)
	var errs []decodeError
	for _, f := range fields {
		raw := top[f]
		if string(raw) == "null" {
			continue
		}
		switch f {
		case "apiVersion", "kind":
		case "metadata":
			errs = append(errs, inside(f, decodeJSON(source.Meta(obj), raw, 0))...)
		case "spec":
			wrong := unmarshalProto(raw, spec, false)
			if len(wrong) == 0 && kind.Finish != nil {
				kind.Finish(obj, raw)
			}
			errs = append(errs, inside(f, wrong)...)
		case "status":
			// Written by controllers, read leniently: a newer one must not
			// invalidate the object.
			errs = append(errs, inside(f, unmarshalProto(raw, status, true))...)
		default:
			errs = append(errs, decodeError{offset: -1, field: f, msg: noSuchField})
		}
	}
	return errs[:min(len(errs), maxErrors)]
}

// inside marks errors as relative to a top level field; place resolves them.
func inside(field string, errs []decodeError) []decodeError {
	for i := range errs {
		if errs[i].field != "" {
			errs[i].field = field + "." + errs[i].field
		} else {
			errs[i].field = field + "."
		}
	}
	return errs
}

var protoError = regexp.MustCompile(`\(line \d+:(\d+)\):?\s*(.*)$`)

func unmarshalProto(raw []byte, into proto.Message, lenient bool) []decodeError {
	msg, ok := source.ReadMessage(raw, into, lenient)
	if ok {
		return nil
	}
	e := decodeError{offset: -1, msg: strings.TrimPrefix(msg, "proto: ")}
	if m := protoError.FindStringSubmatch(msg); m != nil {
		column, _ := strconv.Atoi(m[1])
		e.offset, e.msg = column-1, m[2]
		if strings.HasPrefix(e.msg, "unknown field ") {
			e.msg = noSuchField
		}
	}
	return []decodeError{e}
}

// place finds where in the file a decodeError is.
func place(e decodeError, doc *document) (line int, field string) {
	steps := maxJSON // the document was within its bounds before
	enc := encoder{record: true, steps: &steps}
	if doc.node == nil || enc.value(doc.node, "", 0) != nil {
		return doc.line, strings.TrimSuffix(e.field, ".")
	}
	if top, relative := strings.CutSuffix(e.field, "."); relative {
		e.field = ""
		if e.offset < 0 {
			e.field = top
		} else if base, ok := enc.valueOffset(top); ok {
			e.offset += base
		}
	}
	if e.field != "" {
		if m, ok := enc.find(e.field); ok {
			return m.line, e.field
		}
		return doc.line, e.field
	}
	if e.offset >= 0 {
		m := enc.locate(e.offset)
		return max(m.line, 1), m.field
	}
	return doc.line, ""
}

// valueOffset returns where the value of a top level field begins: its second
// mark, the first being the key's.
func (e *encoder) valueOffset(field string) (int, bool) {
	seen := false
	for _, m := range e.marks {
		if m.field != field {
			continue
		}
		if seen {
			return m.offset, true
		}
		seen = true
	}
	return 0, false
}

package file

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/internal/source"
)

// DecodeJSON reads one object as strictly as one in a file, from the JSON that
// the Kubernetes API speaks. Unknown fields of metadata are no mistakes: they
// belong to Kubernetes, which may be newer than we are. Problems have a field
// and no line. The object is nil when there are any.
func DecodeJSON(kind *source.Kind, data []byte) (metav1.Object, []Problem) {
	var flat bytes.Buffer // on one line, as the protobuf reader counts
	if err := json.Compact(&flat, data); err != nil {
		return nil, []Problem{{Message: fmt.Sprintf("not JSON: %v", err)}}
	}
	data = flat.Bytes()
	obj, errs := decodeObject(kind, data)
	errs = slices.DeleteFunc(errs, func(e decodeError) bool {
		return strings.HasPrefix(e.field, "metadata.") && e.msg == noSuchField
	})
	if len(errs) > 0 {
		problems := make([]Problem, 0, len(errs))
		for _, e := range errs {
			problems = append(problems, Problem{Field: fieldOf(e, data), Message: e.msg})
		}
		return nil, problems
	}
	if kind.Default != nil {
		kind.Default(obj)
	}
	return obj, nil
}

// fieldOf finds the field of an error that knows only where it is.
func fieldOf(e decodeError, data []byte) string {
	top, relative := strings.CutSuffix(e.field, ".")
	switch {
	case !relative && e.field != "":
		return e.field
	case e.offset < 0:
		return top
	case !relative:
		return fieldAt(data, "", e.offset)
	}
	var parts map[string]json.RawMessage
	if json.Unmarshal(data, &parts) != nil {
		return top
	}
	return fieldAt(parts[top], top, e.offset)
}

// fieldAt returns the path of the value or key that holds a byte of the JSON
// of a value whose own path is at.
func fieldAt(data []byte, at string, offset int) string {
	f := finder{dec: json.NewDecoder(bytes.NewReader(data)), offset: int64(offset), found: at}
	f.value(at)
	return f.found
}

type finder struct {
	dec    *json.Decoder
	offset int64
	found  string
	done   bool
}

func (f *finder) token() json.Token {
	t, err := f.dec.Token()
	f.done = f.done || err != nil
	return t
}

// reached reports whether the search has ended; if just now, then at path.
func (f *finder) reached(path string) bool {
	if !f.done && f.dec.InputOffset() > f.offset {
		f.found, f.done = path, true
	}
	return f.done
}

func (f *finder) value(path string) {
	open, nested := f.token().(json.Delim)
	if f.reached(path) || !nested {
		return
	}
	for i := 0; f.dec.More(); i++ {
		child := fmt.Sprintf("%s[%d]", path, i)
		if open == '{' {
			key, _ := f.token().(string)
			child = strings.TrimPrefix(path+"."+key, ".")
			if f.reached(child) {
				return
			}
		}
		f.value(child)
		if f.done {
			return
		}
	}
	f.token()
	f.reached(path)
}

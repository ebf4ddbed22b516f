package file

import (
	"encoding/json"
	"fmt"
	"math"
	"sort"
	"strconv"

	"go.yaml.in/yaml/v3"
)

const (
	// maxDepth is far beyond any manifest and far below the stack.
	maxDepth = 100
	// maxJSON bounds one object after its aliases are expanded, so that a few
	// lines of nested aliases cannot fill the memory. etcd refuses objects
	// above 1.5 MiB.
	maxJSON = 2 << 20
	// maxExpanded bounds the values that aliases repeat in one file. Merge keys
	// can repeat a mapping without writing a byte, so maxJSON does not bound them.
	maxExpanded = 200_000
)

// encodeError is a place where YAML has no counterpart in JSON.
type encodeError struct {
	line  int
	field string
	msg   string
}

// mark says where in the YAML a byte of the JSON came from.
type mark struct {
	offset int
	line   int
	field  string
}

// encoder turns a YAML tree into JSON; with record set it also keeps marks,
// which only the reporting of errors needs.
type encoder struct {
	out    []byte
	marks  []mark
	record bool
	// steps is how many values may still be visited; shared by a file's objects.
	steps *int
}

func (e *encoder) step(n *yaml.Node, field string, depth int) *encodeError {
	*e.steps--
	switch {
	case *e.steps < 0:
		return &encodeError{n.Line, field, "the file's aliases repeat too much"}
	case depth > maxDepth:
		return &encodeError{n.Line, field, fmt.Sprintf("nested deeper than %d", maxDepth)}
	case len(e.out) > maxJSON:
		return &encodeError{n.Line, field, fmt.Sprintf("the object is larger than %d bytes with its aliases expanded", maxJSON)}
	}
	return nil
}

func (e *encoder) at(n *yaml.Node, field string) {
	if e.record {
		e.marks = append(e.marks, mark{len(e.out), n.Line, field})
	}
}

// locate returns the mark of the value that holds a byte of the JSON.
func (e *encoder) locate(offset int) mark {
	i := sort.Search(len(e.marks), func(i int) bool { return e.marks[i].offset > offset })
	if i == 0 {
		return mark{}
	}
	return e.marks[i-1]
}

// find returns the first mark of a field.
func (e *encoder) find(field string) (mark, bool) {
	for _, m := range e.marks {
		if m.field == field {
			return m, true
		}
	}
	return mark{}, false
}

func (e *encoder) value(n *yaml.Node, field string, depth int) *encodeError {
	if err := e.step(n, field, depth); err != nil {
		return err
	}
	switch n.Kind {
	case yaml.AliasNode:
		return e.value(n.Alias, field, depth+1)
	case yaml.MappingNode:
		return e.mapping(n, field, depth)
	case yaml.SequenceNode:
		e.at(n, field)
		e.out = append(e.out, '[')
		for i, c := range n.Content {
			if i > 0 {
				e.out = append(e.out, ',')
			}
			f := ""
			if e.record {
				f = field + "[" + strconv.Itoa(i) + "]"
			}
			if err := e.value(c, f, depth+1); err != nil {
				return err
			}
		}
		e.out = append(e.out, ']')
		return nil
	case yaml.ScalarNode:
		e.at(n, field)
		return e.scalar(n, field)
	case yaml.DocumentNode: // holds values, and is in none
	}
	return &encodeError{n.Line, field, "unexpected YAML"}
}

func (e *encoder) mapping(n *yaml.Node, field string, depth int) *encodeError {
	e.at(n, field)
	e.out = append(e.out, '{')
	seen := make(map[string]struct{}, len(n.Content)/2)
	if err := e.pairs(n, field, depth, seen, false); err != nil {
		return err
	}
	e.out = append(e.out, '}')
	return nil
}

// pairs writes the entries of a mapping, then those that merge keys ("<<")
// add. merged entries yield to what is there already.
func (e *encoder) pairs(n *yaml.Node, field string, depth int, seen map[string]struct{}, merged bool) *encodeError {
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := target(n.Content[i]), n.Content[i+1]
		if k == nil || k.Kind != yaml.ScalarNode {
			return &encodeError{n.Content[i].Line, field, "a key must be a plain value"}
		}
		if k.ShortTag() == "!!merge" {
			merges = append(merges, v)
			continue
		}
		f := k.Value
		if field != "" {
			f = field + "." + k.Value
		}
		if _, dup := seen[k.Value]; dup {
			if merged {
				if err := e.step(k, f, depth); err != nil {
					return err
				}
				continue
			}
			return &encodeError{k.Line, f, "the key is there twice"}
		}
		if len(seen) > 0 {
			e.out = append(e.out, ',')
		}
		seen[k.Value] = struct{}{}
		e.at(k, f)
		e.text(k.Value)
		e.out = append(e.out, ':')
		if err := e.value(v, f, depth+1); err != nil {
			return err
		}
	}
	for _, m := range merges {
		if err := e.merge(m, field, depth+1, seen); err != nil {
			return err
		}
	}
	return nil
}

func (e *encoder) merge(m *yaml.Node, field string, depth int, seen map[string]struct{}) *encodeError {
	if err := e.step(m, field, depth); err != nil {
		return err
	}
	m = target(m)
	switch {
	case m != nil && m.Kind == yaml.MappingNode:
		return e.pairs(m, field, depth, seen, true)
	case m != nil && m.Kind == yaml.SequenceNode:
		for _, c := range m.Content {
			if err := e.merge(c, field, depth+1, seen); err != nil {
				return err
			}
		}
		return nil
	}
	return &encodeError{0, field, "only mappings can be merged"}
}

func (e *encoder) scalar(n *yaml.Node, field string) *encodeError {
	bad := func(what string) *encodeError {
		return &encodeError{n.Line, field, fmt.Sprintf("%q is not %s", n.Value, what)}
	}
	switch n.ShortTag() {
	case "!!null":
		e.out = append(e.out, "null"...)
	case "!!bool":
		var b bool
		if n.Decode(&b) != nil {
			return bad("a boolean")
		}
		e.out = strconv.AppendBool(e.out, b)
	case "!!int":
		var i int64
		var u uint64
		switch {
		case n.Decode(&i) == nil:
			e.out = strconv.AppendInt(e.out, i, 10)
		case n.Decode(&u) == nil:
			e.out = strconv.AppendUint(e.out, u, 10)
		default:
			return bad("a number of 64 bits")
		}
	case "!!float":
		var f float64
		if n.Decode(&f) != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return bad("a number")
		}
		e.out = strconv.AppendFloat(e.out, f, 'g', -1, 64)
	default:
		if n.Style == 0 && oldBoolean(n.Value) {
			e.out = strconv.AppendBool(e.out, n.Value[0] != 'n' && n.Value[0] != 'N' && len(n.Value) != len("off"))
			return nil
		}
		e.text(n.Value)
	}
	return nil
}

// oldBoolean knows the words that were booleans in YAML 1.1 and still are for
// every Kubernetes client; a manifest must mean the same here.
func oldBoolean(s string) bool {
	switch s {
	case "yes", "Yes", "YES", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF":
		return true
	}
	return false
}

func (e *encoder) text(s string) {
	// A string always has a JSON form; invalid UTF-8 was refused by the YAML reader.
	b, _ := json.Marshal(s)
	e.out = append(e.out, b...)
}

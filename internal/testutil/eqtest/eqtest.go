// Package eqtest checks equalities that are written by hand: each must notice
// a difference in any one field. A field that is added to a struct later and
// forgotten in its equality fails the test.
package eqtest

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"
	"unsafe"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Fields compares pairs of T that differ in one field only, at any depth, and
// reports every field whose difference equal does not notice. Fields at the
// paths in except (Embedded.Field, List[].Field) do not take part in equality.
func Fields[T any](t testing.TB, equal func(a, b *T) bool, except ...string) {
	t.Helper()
	typ := reflect.TypeFor[T]()
	all := pairs(typ, "", 0)
	for _, e := range except {
		if !slices.ContainsFunc(all, func(p pair) bool { return p.path == e }) {
			t.Errorf("%v has no field %s to leave out", typ, e)
		}
	}
	for _, p := range all {
		a, b := reflect.New(typ), reflect.New(typ)
		p.set(a.Elem(), b.Elem())
		x, y := a.Interface().(*T), b.Interface().(*T)
		if same, skipped := equal(x, y) && equal(y, x), slices.Contains(except, p.path); same && !skipped {
			t.Errorf("%v: the equality does not notice a difference in %s", typ, p.path)
		}
		p.set(a.Elem(), a.Elem()) // as in b
		if !equal(y, y) {
			t.Errorf("%v: a value with %s set is not equal to itself", typ, p.path)
		}
	}
}

// pair makes two zero values differ at a path, and nowhere else.
type pair struct {
	path string
	set  func(a, b reflect.Value)
}

// maxDepth bounds types that contain themselves.
const maxDepth = 8

func pairs(typ reflect.Type, path string, depth int) []pair {
	if depth > maxDepth {
		return nil
	}
	if v, ok := sample(typ); ok {
		return []pair{{path, func(_, b reflect.Value) { b.Set(v) }}}
	}
	switch typ.Kind() {
	case reflect.Struct:
		return ofStruct(typ, path, depth)
	case reflect.Pointer:
		return inside(pairs(typ.Elem(), path, depth+1), func(v reflect.Value) reflect.Value {
			if v.IsNil() {
				v.Set(reflect.New(typ.Elem()))
			}
			return v.Elem()
		})
	case reflect.Slice:
		longer := pair{path, func(_, b reflect.Value) { b.Set(reflect.MakeSlice(typ, 1, 1)) }}
		return append(inside(pairs(typ.Elem(), path+"[]", depth+1), func(v reflect.Value) reflect.Value {
			if v.Len() == 0 {
				v.Set(reflect.MakeSlice(typ, 1, 1))
			}
			return v.Index(0)
		}), longer)
	case reflect.Map:
		return []pair{{path, func(_, b reflect.Value) {
			b.Set(reflect.MakeMap(typ))
			k := reflect.New(typ.Key()).Elem()
			v := reflect.New(typ.Elem()).Elem()
			b.SetMapIndex(k, v)
		}}}
	default:
		return nil
	}
}

func ofStruct(typ reflect.Type, path string, depth int) []pair {
	var out []pair
	for i := range typ.NumField() {
		f := typ.Field(i)
		at := f.Name
		if path != "" {
			at = path + "." + f.Name
		}
		out = append(out, inside(pairs(f.Type, at, depth+1), func(v reflect.Value) reflect.Value {
			field := v.Field(i)
			// Fields without a capital letter count as well.
			return reflect.NewAt(field.Type(), unsafe.Pointer(field.UnsafeAddr())).Elem()
		})...)
	}
	return out
}

// inside turns pairs of a part into pairs of the whole.
func inside(parts []pair, part func(reflect.Value) reflect.Value) []pair {
	out := make([]pair, 0, len(parts))
	for _, p := range parts {
		out = append(out, pair{p.path, func(a, b reflect.Value) { p.set(part(a), part(b)) }})
	}
	return out
}

// sample returns a value of a simple type that is not its zero value.
func sample(typ reflect.Type) (reflect.Value, bool) {
	switch {
	case typ == reflect.TypeFor[netip.Addr]():
		return reflect.ValueOf(netip.MustParseAddr("192.0.2.1")), true
	case typ == reflect.TypeFor[netip.Prefix]():
		return reflect.ValueOf(netip.MustParsePrefix("192.0.2.0/24")), true
	case typ == reflect.TypeFor[time.Time]():
		return reflect.ValueOf(time.Unix(1, 0)), true
	case typ.Implements(reflect.TypeFor[proto.Message]()):
		return message(typ), true
	}
	v := reflect.New(typ).Elem()
	switch typ.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	case reflect.Float32, reflect.Float64:
		v.SetFloat(1)
	case reflect.String:
		v.SetString("x")
	default:
		return v, false
	}
	return v, true
}

// message returns a protobuf message with its first scalar field set.
func message(typ reflect.Type) reflect.Value {
	v := reflect.New(typ.Elem())
	m := v.Interface().(proto.Message).ProtoReflect()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Kind() == protoreflect.Uint32Kind && !f.IsList() {
			m.Set(f, protoreflect.ValueOfUint32(1))
			break
		}
	}
	return v
}

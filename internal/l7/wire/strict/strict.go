// Package strict refuses messages of the control plane that have more than this version reads.
package strict

import (
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// Unknown returns an error for a field or an enumerator that is not in this
// version of the messages.
func Unknown(m protoreflect.Message) (err error) {
	if raw := m.GetUnknown(); len(raw) > 0 {
		return fmt.Errorf("%s has a field that is not known, in the bytes %x: the control plane is newer than this program", m.Descriptor().FullName(), raw[:min(len(raw), 16)])
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		err = unknownIn(f, v)
		return err == nil
	})
	return err
}

func unknownIn(f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	if f.IsList() {
		for i := range v.List().Len() {
			if err := unknownValue(f, v.List().Get(i)); err != nil {
				return err
			}
		}
		return nil
	}
	return unknownValue(f, v)
}

func unknownValue(f protoreflect.FieldDescriptor, v protoreflect.Value) error {
	switch {
	case f.Message() != nil:
		return Unknown(v.Message())
	case f.Enum() != nil && f.Enum().Values().ByNumber(v.Enum()) == nil:
		return fmt.Errorf("%s: value %d is not known", f.FullName(), v.Enum())
	}
	return nil
}

package world

import (
	"errors"
	"io"
	"strings"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
)

// Object is how a YAML text names an object.
type Object struct {
	APIVersion, Kind string
	Metadata         struct{ Name, Namespace string }
}

// Objects returns the names of the objects in a YAML text.
func Objects(yaml string) (all []Object, err error) {
	for d := utilyaml.NewYAMLOrJSONDecoder(strings.NewReader(yaml), 4096); ; {
		var o Object
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return all, err
		}
		if o.Kind != "" {
			all = append(all, o)
		}
	}
}

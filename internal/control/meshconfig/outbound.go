package meshconfig

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/internal/mesh/egress"
)

// outbound is the field that limits what pods may call. Like all fields of the message it
// may be written as it is called in the protobuf.
const (
	outbound      = "outboundTrafficPolicy"
	outboundProto = "outbound_traffic_policy"
)

// meansOutbound reports whether a name stands for outbound, rightly written or not.
func meansOutbound(name string) bool {
	return strings.EqualFold(strings.ReplaceAll(name, "_", ""), outbound)
}

// confine takes the policy over from a field of text. It rejects what it does not
// understand: to pass over a field could open what its author meant to close.
func (c *Config) confine(name string, value, text []byte) error {
	if name != outbound && name != outboundProto {
		return fmt.Errorf("there is no such field; it is called %s", outbound)
	}
	if c.Outbound != nil {
		return fmt.Errorf("there is %s as well; keep one of them", outbound)
	}
	if _, err := yaml.YAMLToJSONStrict(text); err != nil { // what is there twice
		return err
	}
	if bytes.Equal(value, []byte("null")) {
		return nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(value, &fields); err != nil {
		return err
	}
	for field := range fields {
		if field != "mode" {
			return fmt.Errorf("there is no field %q, only mode", field)
		}
	}
	mode, err := readMode(fields["mode"])
	if err != nil {
		return fmt.Errorf("mode: %w", err)
	}
	c.Outbound = &mode
	return nil
}

// readMode reads a mode by its name, or by its number in the protobuf.
func readMode(value json.RawMessage) (egress.Mode, error) {
	var name string
	switch err := json.Unmarshal(value, &name); {
	case len(value) == 0 || bytes.Equal(value, []byte("null")):
		return egress.RegistryOnly, errors.New("it is missing; write ALLOW_ANY or REGISTRY_ONLY")
	case bytes.Equal(value, []byte("0")):
		return egress.RegistryOnly, nil
	case bytes.Equal(value, []byte("1")):
		return egress.AllowAny, nil
	case err != nil:
		return egress.RegistryOnly, fmt.Errorf("%s is no mode", value)
	}
	return egress.Parse(name)
}

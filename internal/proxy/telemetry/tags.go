package telemetry

import (
	"strings"

	dto "github.com/prometheus/client_model/go"

	"github.com/ambit-mesh/ambit/internal/mesh/identity"
)

// Tags are values that labels may be made of: names of expressions, each with its value for
// a request or a connection. The zero value is none. Comparable.
type Tags string

const (
	tagEnd = "\x01" // after a value; neither is in an expression or a value
	tagGap = "\x00" // between an expression and its value
)

// overflow are the tags of what is beyond the bounds.
const overflow Tags = tagEnd

// Values of labels.
const (
	overflowValue = "overflow" // beyond the bounds
	unknownValue  = "unknown"  // the expression has no value
)

// Bounds of the series with tags: they are made of what clients send. An identity of
// clients has a share of them; what is beyond has the value "overflow".
const (
	maxTagged      = 1 << 13
	maxTaggedShare = 1 << 10
	// maxTaggedOutcomes is maxOutcomes of a series with tags.
	maxTaggedOutcomes = 16
)

// AppendTag appends an expression with its value to tags that are being made. ok is false
// for one without a value.
func AppendTag(b []byte, expression, value string, ok bool) []byte {
	if !ok {
		value = unknownValue
	}
	b = append(b, expression...)
	b = append(b, tagGap...)
	for i := range len(value) {
		if c := value[i]; c > tagEnd[0] {
			b = append(b, c)
		}
	}
	return append(b, tagEnd...)
}

// value returns the value of an expression. What was counted before the expression was
// there has none.
func (t Tags) value(expression string) string {
	if t == overflow {
		return overflowValue
	}
	for rest := string(t); rest != ""; {
		var one string
		one, rest, _ = strings.Cut(rest, tagEnd)
		if text, value, _ := strings.Cut(one, tagGap); text == expression {
			return value
		}
	}
	return unknownValue
}

// tagged counts the pairs with tags.
type tagged struct {
	all  int
	by   map[identity.Identity]int
	ever bool // a series has had tags
}

// admit returns the tags that a pair which does not exist yet may have.
func (t *tagged) admit(k *Key) Tags {
	if k.Tags == "" || k.Tags == overflow || t.all < maxTagged && t.by[k.SrcIdentity] < maxTaggedShare {
		return k.Tags
	}
	return overflow
}

// count adds a pair, or takes one away.
func (t *tagged) count(k *Key, delta int) {
	if k.Tags == "" || k.Tags == overflow {
		return
	}
	t.all += delta
	if t.by[k.SrcIdentity] += delta; t.by[k.SrcIdentity] <= 0 {
		delete(t.by, k.SrcIdentity)
	}
}

// hasTags reports whether series have had tags: several may have the same labels then.
func (r *Recorder) hasTags() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tagged.ever
}

// tagsOf returns the tags of a metric of traffic.
func tagsOf(m any) Tags {
	switch m := m.(type) {
	case *requestMetric:
		return m.s.labels.tags
	case *counter:
		return m.s.labels.tags
	}
	return ""
}

// made adds the labels that are made of tags.
func (c *Override) made(m *dto.Metric, t Tags) {
	for name, expression := range c.From {
		if v := t.value(expression); v != "" { // without a value a label is none
			m.Label = append(m.Label, &dto.LabelPair{Name: &name, Value: &v})
		}
	}
}

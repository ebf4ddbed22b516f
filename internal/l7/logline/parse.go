package logline

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/internal/l7/extauthz"
	"github.com/ambit-mesh/ambit/internal/l7/message"
)

// Bounds of a format.
const (
	maxFormat = 16 << 10 // bytes
	maxLabels = 128
	maxParts  = 512
)

// Text compiles a format of text. Without any it is the default. A line ends with a line
// break whether the format does or not.
func Text(format string) (*Format, error) {
	if format == "" {
		format = DefaultText
	}
	if !strings.HasSuffix(format, "\n") {
		format += "\n"
	}
	if i := strings.IndexByte(format, '\n'); i != len(format)-1 {
		return nil, errors.New("a line break stands before its end: a request has one line")
	}
	parts, err := parse(format)
	return &Format{parts: parts}, err
}

// JSON compiles the keys of a JSON object. Without any they are the default. omit leaves
// out keys without a value.
func JSON(labels []Label, omit bool) (*Format, error) {
	if len(labels) == 0 {
		labels = DefaultLabels
	}
	if len(labels) > maxLabels {
		return nil, fmt.Errorf("there are %d labels (at most %d are possible)", len(labels), maxLabels)
	}
	f := &Format{omit: omit}
	for i, l := range labels {
		if slices.ContainsFunc(labels[:i], func(o Label) bool { return o.Name == l.Name }) {
			return nil, fmt.Errorf("label %q is there twice", l.Name)
		}
		parts, err := parse(l.Format)
		if err != nil {
			return nil, fmt.Errorf("label %q: %w", l.Name, err)
		}
		key, err := json.Marshal(l.Name)
		if err != nil {
			return nil, err
		}
		f.fields = append(f.fields, field{l.Name, string(key) + ":", parts})
	}
	return f, nil
}

// parse divides a format into text and operators.
func parse(format string) (parts []part, err error) {
	if len(format) > maxFormat {
		return nil, fmt.Errorf("it is longer than %d bytes", maxFormat)
	}
	plain := func(s string) {
		if n := len(parts); n > 0 && parts[n-1].op == nil {
			parts[n-1].text += s
		} else if s != "" {
			parts = append(parts, part{text: s})
		}
	}
	for format != "" {
		before, rest, found := strings.Cut(format, "%")
		plain(before)
		if !found {
			break
		}
		if strings.HasPrefix(rest, "%") { // a literal one
			plain("%")
			format = rest[1:]
			continue
		}
		p, after, err := command(rest)
		if err != nil {
			return nil, err
		}
		if parts = append(parts, p); len(parts) > maxParts {
			return nil, fmt.Errorf("it has more than %d parts", maxParts)
		}
		format = after
	}
	return parts, nil
}

// command reads an operator behind its first percent sign: NAME, NAME(ARGUMENT), each
// with a bound of the length (:NUMBER) if it has one.
func command(s string) (p part, rest string, err error) {
	end := strings.IndexAny(s, "(:%")
	if end < 0 {
		return part{}, "", fmt.Errorf("%%%.40s: an operator ends with %%; a percent sign is %%%%", s)
	}
	name, inner := s[:end], ""
	s = s[end:]
	given := s[0] == '('
	if given {
		closing := strings.IndexByte(s, ')')
		if closing < 0 {
			return part{}, "", fmt.Errorf("%%%s: its bracket is not closed", name)
		}
		inner, s = s[1:closing], s[closing+1:]
	}
	length, rest, found := strings.Cut(s, "%")
	if !found {
		return part{}, "", fmt.Errorf("%%%s: an operator ends with %%", name)
	}
	if length != "" {
		n, err := strconv.ParseUint(strings.TrimPrefix(length, ":"), 10, 16)
		if err != nil || length[0] != ':' || n == 0 {
			return part{}, "", fmt.Errorf("%%%s: %q is no bound of the length", name, length)
		}
		p.max = int(n)
	}
	if p.op = operators[name]; p.op == nil {
		return part{}, "", fmt.Errorf("%%%s%%: a waypoint does not have this operator", name)
	}
	switch {
	case p.op.compile != nil && !given:
		return part{}, "", fmt.Errorf("%%%s%%: it needs an argument in brackets", name)
	case p.op.compile != nil:
		err = p.op.compile(inner, &p.arg)
	case given:
		err = errors.New("a waypoint has it without an argument")
	}
	if err != nil {
		return part{}, "", fmt.Errorf("%%%s(%s)%%: %w", name, inner, err)
	}
	return p, rest, nil
}

func compileRequest(s string, a *argument) error {
	first, second, both := strings.Cut(s, "?")
	a.both = both
	var err error
	if a.first, a.pseudo[0], err = requestHeader(first); err == nil && both {
		a.second, a.pseudo[1], err = requestHeader(second)
	}
	return err
}

func requestHeader(s string) (k message.Key, p pseudo, err error) {
	s = strings.ToLower(s)
	if strings.HasPrefix(s, ":") {
		p, ok := map[string]pseudo{":method": pseudoMethod, ":path": pseudoPath, ":authority": pseudoAuthority, ":scheme": pseudoScheme}[s]
		if !ok {
			return k, 0, fmt.Errorf("there is no %s", s)
		}
		return k, p, nil
	}
	if _, f := message.CheckName(s); f != nil {
		return k, 0, fmt.Errorf("header %q: %w", s, f)
	}
	if s == "host" {
		return k, pseudoAuthority, nil
	}
	return message.NewKey(s), noPseudo, nil
}

func compileResponse(s string, _ *argument) error {
	if !strings.EqualFold(s, "x-envoy-upstream-service-time") {
		return errors.New("of responses, a waypoint has X-ENVOY-UPSTREAM-SERVICE-TIME alone")
	}
	return nil
}

// compileMetadata reads NAMESPACE:KEY:KEY.
func compileMetadata(s string, a *argument) error {
	namespace, keys, nested := strings.Cut(s, ":")
	if namespace != extauthz.MetadataNamespace {
		return fmt.Errorf("of dynamic metadata, a waypoint has that of %s alone", extauthz.MetadataNamespace)
	}
	if nested {
		a.path = strings.Split(keys, ":")
	}
	return nil
}

func compileOwn(s string, a *argument) error {
	if ownNames[s] == nil {
		return fmt.Errorf("there is no %q", s)
	}
	a.text = s
	return nil
}

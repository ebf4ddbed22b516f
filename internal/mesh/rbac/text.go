package rbac

import (
	"errors"
	"strings"

	securitypb "github.com/ambit-mesh/ambit/api/security"
)

// TextKind is how a Text compares.
type TextKind uint8

// The kinds. Presence matches every text that is not empty.
const (
	Exact TextKind = iota
	Prefix
	Suffix
	Presence
)

// Text is a condition on a string.
type Text struct {
	Kind  TextKind
	Value string
}

// CompileText compiles a message.
func CompileText(m *securitypb.StringMatch) (Text, error) {
	if err := known(m); err != nil {
		return Text{}, err
	}
	switch t := m.GetMatchType().(type) {
	case *securitypb.StringMatch_Exact:
		return Text{Exact, t.Exact}, nil
	case *securitypb.StringMatch_Prefix:
		return Text{Prefix, t.Prefix}, nil
	case *securitypb.StringMatch_Suffix:
		return Text{Suffix, t.Suffix}, nil
	case *securitypb.StringMatch_Presence:
		return Text{Kind: Presence}, nil
	}
	return Text{}, errors.New("no known kind of match")
}

// Matches reports whether s fits.
func (t Text) Matches(s string) bool {
	switch t.Kind {
	case Exact:
		return s == t.Value
	case Prefix:
		return strings.HasPrefix(s, t.Value)
	case Suffix:
		return strings.HasSuffix(s, t.Value)
	case Presence:
		return s != ""
	}
	return false
}

// MatchesBytes is Matches for bytes. The conversions do not allocate.
func (t Text) MatchesBytes(b []byte) bool {
	switch n := len(t.Value); t.Kind {
	case Exact:
		return string(b) == t.Value
	case Prefix:
		return len(b) >= n && string(b[:n]) == t.Value
	case Suffix:
		return len(b) >= n && string(b[len(b)-n:]) == t.Value
	case Presence:
		return len(b) > 0
	}
	return false
}

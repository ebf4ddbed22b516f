package reason

import (
	"errors"
	"io"
	"regexp"
	"testing"
)

// last is the last member of the set.
const last = TryTimeout

var httpFlags = map[string]bool{"-": true, "DC": true, "DPE": true, "NC": true, "NR": true, "RL": true, "SI": true, "UAEX": true, "UC": true, "UF": true, "UH": true, "UO": true, "UPE": true, "UT": true}

func TestTableIsComplete(t *testing.T) {
	name := regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)
	flags := map[string]bool{"-": true, "DENY": true, "CONNECT": true, "TLS_FAILURE": true, "H2_HANDSHAKE_FAILURE": true, "NETWORK_POLICY": true, "IDENTITY_ERROR": true, "CERT_REVOKED": true}
	if len(table) != int(last)+1 || len(http) != len(table) {
		t.Fatalf("the tables have %d and %d rows for %d reasons", len(table), len(http), last+1)
	}
	seen := map[string]bool{}
	for _, r := range All() {
		i := r.Info()
		if !name.MatchString(i.Name) || seen[i.Name] {
			t.Errorf("reason %d: name %q is malformed or taken", r, i.Name)
		}
		seen[i.Name] = true
		if !flags[i.Flag] {
			t.Errorf("%s: %q is not a response flag", r, i.Flag)
		}
		h := r.HTTP()
		if !httpFlags[h.Flag] || h.Status != 0 && (h.Status < 400 || h.Status > 599) || (h.Status == 0) != (r == OK || r == DownstreamReset) {
			t.Errorf("%s: HTTP %+v", r, h)
		}
		if i.What == "" {
			t.Errorf("%s does not say what happened", r)
		}
	}
	if Reason(200).String() != "INTERNAL" {
		t.Error("a number outside the set is not INTERNAL")
	}
}

func TestErrorKeepsItsCause(t *testing.T) {
	err := error(Errorf(ConnectFailure, "dial 10.0.0.1:80: %w", io.EOF))
	var e *Error
	if !errors.Is(err, io.EOF) || !errors.As(err, &e) || e.Reason != ConnectFailure {
		t.Fatalf("%v lost its cause or reason", err)
	}
}

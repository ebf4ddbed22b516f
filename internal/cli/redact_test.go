package cli

import "testing"

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"Authorization: Bearer abcdefghijkl":                                   "Authorization: Bearer REDACTED",
		"x eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln y":                        "x REDACTED y",
		"-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY-----\nz": "REDACTED\nz",
		"-----BEGIN PRIVATE KEY-----\nthe file ends too soon":                  "REDACTED",
		`{"password": "hunter22", "user": "u"}`:                                `{"password": "REDACTED", "user": "u"}`,
		"api-key=12345678 next":                                                "api-key=REDACTED next",
		// A word at the end of a line announces nothing about the next.
		"- serviceAccountToken:\n    audience: istio-ca\n":            "- serviceAccountToken:\n    audience: istio-ca\n",
		"-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----": "-----BEGIN CERTIFICATE-----\nabc\n-----END CERTIFICATE-----",
	} {
		if got := string(redact([]byte(in))); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

package ztunnel

import "testing"

func TestLogLevels(t *testing.T) {
	for in, want := range map[string]string{
		"info":                   "info",
		"info,access=debug":      "info,access=debug",
		"access:debug,info":      "access=debug,info",
		"warning, xds:error":     "warn,xds=error",
		"critical":               "error",
		"ztunnel::proxy:off":     "ztunnel::proxy=off",
		"ztunnel::proxy=WARNING": "ztunnel::proxy=warn",
		"":                       "",
		"nonsense,=":             "nonsense,=",
	} {
		if got := logLevels(in); got != want {
			t.Errorf("%q is %q, not %q", in, got, want)
		}
	}
}

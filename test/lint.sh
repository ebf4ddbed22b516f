#!/bin/sh
# gofmt, go vet, golangci-lint and govulncheck over the repository; each is one
# check of the count at the end.
set -u
GO=${GO:-go}
passed=0; failed=0
check() { # NAME COMMAND…
	name=$1; shift
	if out=$("$@" 2>&1); then
		passed=$((passed + 1)); echo "ok   $name"
	else
		failed=$((failed + 1)); printf 'FAIL %s\n%s\n' "$name" "$out"
	fi
}
formatted() { out=$(gofmt -l $(git ls-files '*.go')); [ -z "$out" ] || { echo "$out"; return 1; }; }
tidy() { $GO mod tidy -diff; }
parts() { for m in test/parts/*/go.mod; do (cd "${m%/go.mod}" && GOWORK=off $GO vet .) || return 1; done; }

check gofmt formatted
check 'go mod tidy' tidy
check 'go vet' $GO vet ./...
check 'go vet of test/parts' parts
check golangci-lint env GOFLAGS= $GO run "$GOLANGCI" run ./...
# The vulnerability database is on the network; without it the check says so and does not count.
if out=$(env GOFLAGS= $GO run "$GOVULNCHECK" ./... 2>&1); then
	passed=$((passed + 1)); echo "ok   govulncheck"
elif echo "$out" | grep -qE 'no such host|dial tcp|Client.Timeout|connection refused|lookup '; then
	echo "---- govulncheck: the vulnerability database could not be reached; not counted"
else
	failed=$((failed + 1)); printf 'FAIL govulncheck\n%s\n' "$out"
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]

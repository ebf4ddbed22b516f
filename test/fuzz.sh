#!/bin/sh
# Runs every fuzz target of the repository for $FUZZTIME each, one after the other.
set -u
GO=${GO:-go}; FUZZTIME=${FUZZTIME:-10s}
passed=0; failed=0
for file in $(git ls-files '*_test.go' | xargs grep -lE '^func Fuzz' | sort); do
	dir=./$(dirname "$file")
	for target in $(sed -nE 's/^func (Fuzz[A-Za-z0-9_]+)\(.*/\1/p' "$file"); do
		if $GO test -run '^$' -fuzz "^$target\$" -fuzztime "$FUZZTIME" "$dir" >/tmp/ambit-fuzz.$$ 2>&1; then
			passed=$((passed + 1)); echo "ok   $dir $target"
		else
			failed=$((failed + 1)); echo "FAIL $dir $target"; cat /tmp/ambit-fuzz.$$
		fi
	done
done
rm -f /tmp/ambit-fuzz.$$
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]

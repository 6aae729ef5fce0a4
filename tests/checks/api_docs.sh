#!/bin/sh
# docs/api.md is what tools/api_docs.pl makes of the headers, and has an entry for every function of the
# pinned list. Usage: api_docs.sh SOURCE_DIR
set -eu
cd "$1"
passed=0 failed=0
bad() { echo "FAIL api_docs: $*"; failed=$((failed + 1)); }
made=$(mktemp)
trap 'rm -f "$made"' EXIT
if ! perl tools/api_docs.pl include/espalier >"$made"; then
    bad "tools/api_docs.pl cannot read a header"
elif cmp -s "$made" docs/api.md; then
    passed=$((passed + 1))
else
    bad "docs/api.md is not what the headers say: run 'make api-docs'"
    diff docs/api.md "$made" | head -n 10
fi
while read -r name; do
    if grep -qE "^### (.*, )?\`$name\`(,|\$)" "$made"; then
        passed=$((passed + 1))
    else
        bad "$name has no entry"
    fi
done <src/espalier.symbols
echo "api_docs: $passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]

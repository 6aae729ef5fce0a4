#!/bin/sh
# Three lists agree: the functions that the public headers declare, the pinned list src/espalier.symbols,
# and what the shared library exports. A function that comes or goes must be entered in the pinned list,
# so that no change of the binary interface slips by. Usage: symbols.sh SOURCE_DIR BUILD_DIR
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat "$1"/include/espalier/*.h | tr '\n' ' ' | sed 's/;/;\n/g' |
    sed -n 's/.*ESP_API[^(]*[ *]\(esp_[a-z0-9_]*\)(.*/\1/p' | sort -u >"$work/declared"
# Versions ("@@ESPALIER_0") are stripped; the version's own name (A) is no symbol.
nm -D --defined-only "$2/libespalier.so" | awk '$2 ~ /[TDBRVWi]/ {print $3}' | sed 's/@.*//' |
    sort -u >"$work/exported"
cp "$1/src/espalier.symbols" "$work/pinned"
passed=0 failed=0
bad() { echo "FAIL symbols: $*"; failed=$((failed + 1)); }

if LC_ALL=C sort -uc "$work/pinned" 2>/dev/null; then
    passed=$((passed + 1))
else
    bad "src/espalier.symbols is not sorted, or names a function twice"
fi
while read -r name; do
    if ! grep -qx "$name" "$work/pinned"; then
        bad "$name is new in a public header: add it to src/espalier.symbols"
    elif ! grep -qx "$name" "$work/exported"; then
        bad "$name is declared in a public header but not exported"
    else
        passed=$((passed + 1))
    fi
done <"$work/declared"
while read -r name; do
    grep -qx "$name" "$work/declared" ||
        bad "$name is in src/espalier.symbols but in no public header: programs may need it"
done <"$work/pinned"
while read -r name; do
    grep -qx "$name" "$work/declared" || bad "$name is exported but in no public header"
done <"$work/exported"
soname=$(readelf -d "$2/libespalier.so" | sed -n 's/.*SONAME.*\[\(.*\)\].*/\1/p')
major=$(sed -n 's/^#define ESP_VERSION_MAJOR \([0-9]*\)$/\1/p' "$1/include/espalier/base.h")
if [ "$soname" = "libespalier.so.$major" ]; then
    passed=$((passed + 1))
else
    bad "the soname is '$soname', expected libespalier.so.$major"
fi
echo "symbols: $passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]

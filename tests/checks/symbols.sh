#!/bin/sh
# The shared library exports exactly the functions that the public headers declare.
# Usage: symbols.sh SOURCE_DIR BUILD_DIR
set -eu
declared=$(cat "$1"/include/espalier/*.h | tr '\n' ' ' | sed 's/;/;\n/g' |
    sed -n 's/.*ESP_API[^(]*[ *]\(esp_[a-z0-9_]*\)(.*/\1/p' | sort -u)
exported=$(nm -D --defined-only "$2/libespalier.so" | awk '$2 ~ /[TDBRVW]/ {print $3}' | sort -u)
passed=0 failed=0
for name in $declared; do
    if echo "$exported" | grep -qx "$name"; then
        passed=$((passed + 1))
    else
        echo "FAIL symbols: $name is declared in a public header but not exported"
        failed=$((failed + 1))
    fi
done
for name in $exported; do
    if ! echo "$declared" | grep -qx "$name"; then
        echo "FAIL symbols: $name is exported but in no public header"
        failed=$((failed + 1))
    fi
done
echo "symbols: $passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]

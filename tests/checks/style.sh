#!/bin/sh
# clang-format 14 leaves every C file as it is, and no file grows past 600 lines (a test program: 900).
# Usage: style.sh SOURCE_DIR
set -eu
cd "$1"
passed=0 failed=0 skipped=0
formatter=
for candidate in clang-format-14 clang-format; do
    if command -v $candidate >/dev/null 2>&1 && $candidate --version | grep -q 'version 14\.'; then
        formatter=$candidate
        break
    fi
done
for file in $(find include src cli tests bench examples -name '*.[ch]' 2>/dev/null | sort); do
    case $file in tests/*) most=900 ;; *) most=600 ;; esac
    if [ "$(wc -l <"$file")" -gt "$most" ]; then
        echo "FAIL style: $file has more than $most lines: one idea a file"
        failed=$((failed + 1))
    elif [ -z "$formatter" ]; then
        skipped=$((skipped + 1))
    elif $formatter --dry-run -Werror "$file" 2>/dev/null; then
        passed=$((passed + 1))
    else
        echo "FAIL style: $file: run clang-format-14 -i on it"
        failed=$((failed + 1))
    fi
done
[ -n "$formatter" ] || echo "not run style: clang-format 14 is not installed"
echo "style: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]

#!/bin/sh
# clang-format 14 leaves every C file as it is, and no file grows past 600 lines (a test program: 900).
# Usage: style.sh SOURCE_DIR
set -eu
cd "$1"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
formatter=
for candidate in clang-format-14 clang-format; do
    if command -v $candidate >/dev/null 2>&1 && $candidate --version | grep -q 'version 14\.'; then
        formatter=$candidate
        break
    fi
done
find include src cli tests bench examples -name '*.[ch]' 2>/dev/null | sort >"$work/files"

while read -r file; do
    case $file in tests/*) most=900 ;; *) most=600 ;; esac
    lines=$(wc -l <"$file")
    [ "$lines" -le "$most" ] || echo "FAIL style: $file has more than $most lines: one idea a file"
done <"$work/files" >"$work/long"

# Many files a process: starting one takes longer than a file. One that fails without naming a file is
# a failure by itself.
broken=0
mkdir "$work/said"
if [ -n "$formatter" ]; then
    # shellcheck disable=SC2016
    FOLDER=$work/said xargs -n 50 -P "$(nproc)" sh -c '$0 --dry-run -Werror "$@" 2>"$FOLDER/$$"' $formatter \
        <"$work/files" || broken=1
fi
sed -n 's/^\([^ :]*\):[0-9]*:[0-9]*: error: .*/\1/p' "$work"/said/* 2>/dev/null | sort -u >"$work/unlike"
sed 's/.*/FAIL style: &: run clang-format-14 -i on it/' "$work/unlike" >"$work/unformatted"
if [ $broken = 1 ] && ! [ -s "$work/unlike" ]; then
    echo "FAIL style: $formatter: $(cat "$work"/said/* | head -n 1)" >>"$work/unformatted"
fi

cat "$work/long" "$work/unformatted"
failed=$(cat "$work/long" "$work/unformatted" | wc -l)
rest=$(($(wc -l <"$work/files") - failed))
if [ -n "$formatter" ]; then
    passed=$rest skipped=0
else
    passed=0 skipped=$rest
    echo "not run style: clang-format 14 is not installed"
fi
echo "style: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]

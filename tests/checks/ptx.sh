#!/bin/sh
# What src/cuda/sm80_*.cu ship as PTX assembles for the GPUs for which the build makes no machine code.
# Usage: ptx.sh SOURCE_DIR [BUILD_DIR]
set -eu
cd "$1"
if ! command -v nvcc >/dev/null 2>&1; then
    echo "not run ptx: nvcc is not on PATH"
    echo "ptx: 0 passed, 0 failed, 1 skipped"
    exit 0
fi
ptxas=ptxas
command -v ptxas >/dev/null 2>&1 || ptxas=$(dirname "$(readlink -f "$(command -v nvcc)")")/ptxas
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
export ptxas made

# A word or two a line of stdin, as many at a time as there are processors; each says ok or FAIL.
# shellcheck disable=SC2016
translate='
    if nvcc -std=c++17 -Iinclude -Isrc -arch=compute_80 -ptx "src/cuda/$1.cu" -o "$made/$1.ptx" >"$made/$1.log" 2>&1
    then echo ok; else echo "FAIL ptx: src/cuda/$1.cu is not translated: $(head -n 1 "$made/$1.log")"; fi'
# shellcheck disable=SC2016
assemble='
    if "$ptxas" -O0 -arch="$2" "$made/$1.ptx" -o "$made/$1.$2" >"$made/$1.$2.log" 2>&1
    then echo ok
    else echo "FAIL ptx: src/cuda/$1.cu does not assemble for $2: $(head -n 1 "$made/$1.$2.log")"; fi'
side_by_side() { xargs -L 1 -P "$(nproc)" sh -c "$1" sh; }

for file in src/cuda/sm80_*.cu; do
    basename "$file" .cu
done | side_by_side "$translate" >"$made/translated"
for file in "$made"/*.ptx; do
    for architecture in sm_86 sm_89 sm_100 sm_120; do
        echo "$(basename "$file" .ptx) $architecture"
    done
done | side_by_side "$assemble" >"$made/assembled"

cat "$made/translated" "$made/assembled" | grep FAIL || :
passed=$(grep -c '^ok' "$made/assembled" || :)
failed=$(cat "$made/translated" "$made/assembled" | grep -c FAIL || :)
echo "ptx: $passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]

#!/bin/sh
# What src/cuda/sm80_*.cu ship as PTX assembles for the GPUs for which the build makes no machine code.
# Usage: ptx.sh SOURCE_DIR [BUILD_DIR]
set -eu
cd "$1"
passed=0 failed=0 skipped=0
if ! command -v nvcc >/dev/null 2>&1; then
    echo "not run ptx: nvcc is not on PATH"
    echo "ptx: 0 passed, 0 failed, 1 skipped"
    exit 0
fi
ptxas=ptxas
command -v ptxas >/dev/null 2>&1 || ptxas=$(dirname "$(readlink -f "$(command -v nvcc)")")/ptxas
made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
for file in src/cuda/sm80_*.cu; do
    name=$(basename "$file" .cu)
    if ! nvcc -std=c++17 -Iinclude -Isrc -arch=compute_80 -ptx "$file" -o "$made/$name.ptx" >"$made/log" 2>&1; then
        echo "FAIL ptx: $file is not translated: $(head -n 1 "$made/log")"
        failed=$((failed + 1))
        continue
    fi
    for architecture in sm_86 sm_89 sm_100 sm_120; do
        if "$ptxas" -O0 -arch=$architecture "$made/$name.ptx" -o "$made/cubin" >"$made/log" 2>&1; then
            passed=$((passed + 1))
        else
            echo "FAIL ptx: $file does not assemble for $architecture: $(head -n 1 "$made/log")"
            failed=$((failed + 1))
        fi
    done
done
echo "ptx: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]

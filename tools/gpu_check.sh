#!/bin/sh
# Everything that needs a GPU, in one go: tests, random problems, the memory checkers, and the timing table.
# Usage: gpu_check.sh [BUILD_DIR [OUT_DIR]]. BUILD_DIR is a build with CUDA, made there or carried in; without
# one it is built here. ROUNDS sets how many random problems are drawn, COMMIT names the build in the results.
# The last line says how many steps failed.
set -u
build=${1:-build-cuda} out=${2:-gpu-check} rounds=${ROUNDS:-2000} commit=${COMMIT:-unknown}
mkdir -p "$out"
if [ ! -x "$build/tests/test_cuda" ] && [ -f CMakePresets.json ]; then
    cmake --preset cuda -G Ninja --log-level=WARNING && cmake --build "$build" || exit 1
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || {
    echo "skipped: no GPU"
    exit 77
}
failed=0
step() {
    name=$1
    shift
    started=$(date +%s)
    "$@" >"$out/$name.log" 2>&1
    code=$?
    echo "$name: status $code ($(($(date +%s) - started)) s) $(tail -n 1 "$out/$name.log")"
    if [ $code != 0 ]; then
        failed=$((failed + 1))
        grep -m 5 -E "^FAIL|ERROR|error" "$out/$name.log"
    fi
}

step tests env TEST_ROUNDS="$rounds" "$build/tests/test_cuda"
step tests_blocks env TEST_ROUNDS="$rounds" "$build/tests/test_cuda_blocks"
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        step $tool compute-sanitizer --tool $tool --error-exitcode 9 "$build/tests/test_cuda" sanitizer
        step ${tool}_blocks compute-sanitizer --tool $tool --error-exitcode 9 \
            "$build/tests/test_cuda_blocks" sanitizer
    done
fi
set --
for shape in 4096x4096x4096 11008x4096x4096 4096x11008x4096 3072x768x12608 4096x4096x512; do
    for pattern in 2:4 64:2:5 128:2:5 256:2:5 64:2:8 128:2:8 256:2:8 64:2:16 128:2:16 256:2:16; do
        set -- "$@" "matmul/$pattern/f16/$shape"
    done
    for pattern in block:16x16@0.9 block:32x32@0.9 block:64x64@0.8 block:64x64@0.9 block:128x128@0.8; do
        set -- "$@" "matmul/$pattern/f16/$shape"
    done
done
for tokens in 1 8 16; do
    for pattern in 2:4 64:2:5 64:2:8 128:2:8 64:2:16 block:32x32@0.9 block:64x64@0.8 block:64x64@0.5; do
        set -- "$@" "matmul/$pattern/f16/11008x4096x$tokens"
    done
done
[ -x "$build/bench/gpu_bench" ] &&
    step bench "$build/bench/gpu_bench" --rounds 9 --commit "$commit" --json "$out/gpu.jsonl" "$@"
echo "gpu_check: $failed failed"
[ $failed = 0 ]

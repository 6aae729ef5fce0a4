#!/bin/sh
# Runs the checks of the sources, every test program of the release build, the command-line tests, and
# every test program again under AddressSanitizer and UndefinedBehaviorSanitizer.
# Usage: run.sh SOURCE_DIR BUILD_DIR ASAN_BUILD_DIR. The last line is the sum.
set -u
source=$1 build=$2 asan=$3
total_passed=0 total_failed=0 total_skipped=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# execute LOG COMMAND...: what it says goes to LOG, its status and its seconds to LOG.status.
execute() {
    log=$1 started=$(date +%s)
    shift
    "$@" >"$log" 2>&1
    echo $? $(($(date +%s) - started)) >"$log.status"
}

# A command's last line is "NAME: N passed, N failed, N skipped"; settle LABEL LOG adds that up. One that
# ended without such a line, or failed without a failed case, counts as one failure.
settle() {
    label=$1 log=$2
    read -r code seconds <"$log.status" || code=lost seconds=0
    sum=$(sed -n 's/^[^ ]*: \([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' \
        "$log" | tail -n 1)
    grep -vE '^[^ ]*: [0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 60
    if [ -z "$sum" ]; then
        echo "FAIL $label: ended with status $code and no sum"
        sum="0 1 0"
    fi
    # shellcheck disable=SC2086
    set -- $sum
    failed=$2
    if [ "$code" != 0 ] && [ "$failed" = 0 ]; then
        echo "FAIL $label: status $code"
        failed=1
    fi
    total_passed=$((total_passed + $1))
    total_failed=$((total_failed + failed))
    total_skipped=$((total_skipped + $3))
    echo "$label: $1 passed, $failed failed, $3 skipped ($seconds s)"
}

run() {
    label=$1
    shift
    execute "$work/log" "$@"
    settle "$label" "$work/log"
}

# side_by_side PREFIX PROGRAM...: as many at a time as there are processors: these tests compare no
# times, and where they look at a clock, they allow for a busy machine.
side_by_side() {
    prefix=$1
    shift
    # shellcheck disable=SC2016
    printf '%s\n' "$@" | xargs -n 1 -P "$(nproc)" sh -c 'log=$0/$(basename "$1") started=$(date +%s)
        "$1" >"$log" 2>&1
        echo $? $(($(date +%s) - started)) >"$log.status"' "$work"
    for program in "$@"; do
        settle "$prefix$(basename "$program")" "$work/$(basename "$program")"
        rm -f "$work/$(basename "$program")" "$work/$(basename "$program").status"
    done
}

not_run() {
    echo "not run $1: $2"
    total_skipped=$((total_skipped + 1))
}

for check in "$source"/tests/checks/*.sh; do
    run "check $(basename "$check" .sh)" sh "$check" "$source" "$build"
done
side_by_side "" "$build"/tests/test_*
run kernel_check "$build"/kernel_check
for script in "$source"/tests/cli/run.sh "$source"/tests/independent/run.sh \
    "$source"/tests/install/run.sh; do
    [ -f "$script" ] && run "$(basename "$(dirname "$script")")" sh "$script" "$build" "$source"
done
if [ -d "$asan/tests" ]; then
    export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
    side_by_side "asan " "$asan"/tests/test_*
    run "asan kernel_check" "$asan"/kernel_check --cases 12
else
    not_run "sanitizers" "$asan is not built"
fi
if command -v nvcc >/dev/null 2>&1; then
    if grep -q '^ESPALIER_CUDA_BUILT:INTERNAL=ON' "$build/CMakeCache.txt"; then
        echo "cuda: 1 passed, 0 failed, 0 skipped (compiled)"
        total_passed=$((total_passed + 1))
    else
        echo "FAIL cuda: nvcc is there but the CUDA part was not built"
        total_failed=$((total_failed + 1))
    fi
    if ! nvidia-smi >/dev/null 2>&1; then
        not_run "cuda on a GPU" "no GPU here"
    fi
else
    not_run "cuda" "no nvcc here"
fi
echo "$total_passed passed, $total_failed failed, $total_skipped skipped"
[ "$total_failed" = 0 ]

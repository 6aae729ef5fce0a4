#!/bin/sh
# The times that ship with the library for the kind of GPU that this machine has (src/cuda/default_times.c):
# measures patterns and token counts below, the most useful shapes first, until the time is up.
# Usage: tools/default_times.sh PROGRAM TUNING_FILE [SECONDS]
# then:  tools/default_times.pl TUNING_FILE... >src/cuda/default_times.inc, and build anew.
# What is measured is kept at once: ending it early loses the pattern that was being measured, and a second run
# with the same file goes on where the first stopped. The reference computes every output on the processor: with 33000
# tokens a pattern, a shape of 4096x4096 took more than 3 minutes of 16 processors. SECONDS: 150.
# SHAPES, PATTERNS, TOKENS, TYPE, ROUNDS: environment.
set -u
[ $# -ge 2 ] || { echo "usage: $0 PROGRAM TUNING_FILE [SECONDS]" >&2; exit 2; }
program=$1 seconds=${3:-150}
ESPALIER_TUNING=$2
export ESPALIER_TUNING
shapes=${SHAPES:-4096x4096 11008x4096 4096x11008 3072x768 768x3072 2304x768 768x768 4096x1024 1024x4096 3072x1024
1024x1024 5120x1280 1280x5120 3840x1280 1280x1280 12288x4096 22016x4096 1536x384 384x1536 14336x4096 4096x14336}
patterns=${PATTERNS:-2:4 64:2:8 128:2:8 64:2:16 64:2:5 128:2:16 256:2:8}
tokens=${TOKENS:-1 16 256 512 2048 12800} type=${TYPE:-f16}
begun=$(date +%s) done=0 failed=0
left() { echo $((seconds - ($(date +%s) - begun))); }
for shape in $shapes; do
    set --
    for pattern in $patterns; do
        grep -qs " matmul/$pattern/$type/${shape}x" "$ESPALIER_TUNING" && continue
        for count in $tokens; do
            set -- "$@" "matmul/$pattern/$type/${shape}x$count"
        done
    done
    [ $# = 0 ] && echo "$shape: measured before" >&2 && continue
    [ "$(left)" -gt 0 ] || { echo "not measured: $shape" >&2; failed=1; continue; }
    started=$(date +%s)
    timeout "$(left)" "$program" tune --device cuda:0 --rounds "${ROUNDS:-3}" -q "$@" >/dev/null
    code=$?
    echo "$shape: $# problems, $(($(date +%s) - started)) s, status $code" >&2
    [ $code = 0 ] && done=$((done + 1)) || failed=1
done
echo "$done shapes measured in $(($(date +%s) - begun)) s"
[ $failed = 0 ]

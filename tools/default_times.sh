#!/bin/sh
# The times that ship with the library for one kind of GPU (src/cuda/default_times.c): measures every shape,
# pattern and token count below on the first GPU, a minute or two, and writes the table.
# Usage: tools/default_times.sh PROGRAM TUNING_FILE GPU_WORD
# then:  tools/default_times.pl TUNING_FILE h200 'NVIDIA H200' >src/cuda/default_times_h200.inc
# SHAPES, PATTERNS, TOKENS, TYPE, ROUNDS: environment.
set -eu
program=$1
ESPALIER_TUNING=$2
export ESPALIER_TUNING
shapes=${SHAPES:-4096x4096 11008x4096 4096x11008 3072x768 768x3072 768x768 2304x768 1024x1024 4096x1024
1024x4096 5120x1280 1280x5120 8192x8192 14336x4096 4096x14336}
patterns=${PATTERNS:-2:4 64:2:5 64:2:8 128:2:8 64:2:16 128:2:16 256:2:8}
tokens=${TOKENS:-1 2 4 8 16 32 64 128 256 512 1024 2048 4096 12608}
for shape in $shapes; do
    set --
    for pattern in $patterns; do
        for count in $tokens; do
            set -- "$@" "matmul/$pattern/${TYPE:-f16}/${shape}x$count"
        done
    done
    started=$(date +%s)
    "$program" tune --device cuda:0 --rounds "${ROUNDS:-3}" -q "$@" >/dev/null
    echo "$shape: $# problems, $(($(date +%s) - started)) s" >&2
done

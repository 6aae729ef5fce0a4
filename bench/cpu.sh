#!/bin/sh
# The table of record: dense and four patterns, two shapes, decoding to prefill, every dense rival in the
# same interleaved rounds. About ten minutes on two cores; the machine must be idle.
# Usage: bench/cpu.sh PROGRAM THREADS [TYPES...] > results.jsonl; then bench/table.pl results.jsonl
# TYPES: f32/c:f32 bf16/c:bf16 unless given; bf16/c:f32 is a third. SHAPES, TOKENS, ROUNDS: environment.
set -eu
program=$1 threads=$2
shift 2
[ $# -gt 0 ] || set -- f32/c:f32 bf16/c:bf16
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE OPENBLAS_NUM_THREADS OMP_NUM_THREADS ESPALIER_CPU || :
for types in "$@"; do
    for shape in ${SHAPES:-4096x4096 11008x4096}; do
        list=
        # One run of the program, so that weights are pruned once for all token counts.
        for tokens in ${TOKENS:-1 16 128 512}; do
            for pattern in dense 2:4 64:2:8 64:2:16 block:32x32@0.8; do
                list="$list matmul/$pattern/${types%/*}/${shape}x$tokens/a:f32/${types#*/}"
            done
        done
        echo "$shape $types" >&2
        # shellcheck disable=SC2086
        ${TIMED_BY-} "$program" bench --device cpu --against dense --rounds "${ROUNDS:-9}" \
            --threads "$threads" --json -q $list
    done
done

#!/bin/sh
# Products on the CPU: dense and three patterns, two shapes, decoding to prefill, every dense rival in
# the same interleaved rounds. Usage: bench/cpu.sh PROGRAM THREADS > results.jsonl
set -eu
program=$1 threads=$2
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE OPENBLAS_NUM_THREADS OMP_NUM_THREADS || :
for shape in 4096x4096 11008x4096; do
    for types in f32/c:f32 bf16/c:f32 bf16/c:bf16; do
        for tokens in 1 16 128 512; do
            set --
            for pattern in dense 2:4 64:2:8 64:2:16; do
                set -- "$@" "matmul/$pattern/${types%/*}/${shape}x$tokens/a:f32/${types#*/}"
            done
            "$program" bench --threads "$threads" --json -q "$@"
        done
    done
done

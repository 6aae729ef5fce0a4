#!/bin/sh
# The settings of bench/accuracy.sh, those that answer a question of docs/accuracy.md first, then the
# whole table, then further seeds of the best. Lines that come twice are measured once.
set -eu

# PATTERNS METHODS REFITS PERMUTES INPUTS SEEDS
each() {
    for seed in $6; do for pattern in $1; do for permute in $4; do for refit in $3; do
        for method in $2; do
            [ "$pattern/$method" != 2:4/obs ] || continue # is SparseGPT there
            echo "$pattern $method $refit $permute $5 $seed"
        done
    done; done; done; done
}

all="2:4 64:2:5 128:2:5 64:2:8 128:2:8 panel:64@0.75 panel:128@0.75 64:2:16"
methods="magnitude wanda ria sparsegpt obs joint"
lists="64:2:8 panel:64@0.75 128:2:8 panel:128@0.75"

# 1. 128:2:5 against 2:4 without updates
each "2:4" "wanda ria sparsegpt" no no pruned 0
each "128:2:5" "obs sparsegpt joint" yes no pruned 0
each "2:4" sparsegpt yes no pruned 0
# 2. free lists against V:2:M of equal bytes, and what a refit gives: loss, then layers on equal inputs
each "$lists" "obs sparsegpt wanda joint" yes no pruned 0
each "$lists" "wanda sparsegpt obs magnitude ria joint" yes no dense 0
each "$all" "magnitude wanda ria" no no pruned 0
each "$lists" "obs sparsegpt" no no pruned 0
# 3. orders of channels
each "$all" magnitude no yes pruned 0
each "128:2:5 64:2:8" "obs joint" yes "yes turned" pruned 0
each "2:4 panel:64@0.75" joint yes "yes turned" pruned 0
# 4. other seeds of the best
each "128:2:5 64:2:8 panel:64@0.75" obs yes no pruned "1 2"
each "2:4" "wanda ria sparsegpt" no no pruned "1 2"
# 5. everything
each "$all" "$methods" "yes no" no pruned 0
each "$all" "$methods" yes no dense 0
each "$all" "$methods" "yes no" yes pruned 0
each "$all" "obs sparsegpt joint" yes no pruned "1 2"
# 6. turned residual streams: where the model's norms allow it
each "128:2:5" joint yes stream pruned "0 1 2"
each "2:4" "wanda ria" no stream pruned "0 1 2"
each "$all" joint yes stream pruned 0
each "128:2:5" joint yes all pruned 0

#!/bin/sh
# What pruning costs a model in loss, by pattern and method: lines "pattern method refit loss error
# seconds" and, with bench/accuracy.pl, the table of docs/accuracy.md.
# Usage: accuracy.sh ESPALIER MODEL CALIBRATION_TEXT HELDOUT_TEXT [PATTERNS [OPTIONS OF PRUNE...]]
#   bench/accuracy.sh build/espalier models/prose models/prose/calibration.txt models/prose/heldout.txt \
#       "64:2:8 2:4" >lines && perl bench/accuracy.pl <lines
# METHODS, REFITS (no yes): environment, for a part of the table.
set -eu
espalier=$1 model=$2 calibration=$3 heldout=$4
patterns=${5:-2:4 64:2:5 128:2:5 64:2:8 128:2:8 panel:64@0.75}
shift $(($# < 5 ? $# : 5))
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# FILE KEY: a number of a JSON line; the first of that name
number() { grep -o "\"$2\":[0-9.e+-]*" "$1" | head -1 | cut -d: -f2; }

# FOLDER: nats a token
loss() {
    "$espalier" eval "$1" --text "$heldout" --json >"$work/eval" 2>/dev/null
    perl -e 'printf "%.4f", $ARGV[0] / $ARGV[1]' "$(number "$work/eval" nats)" "$(number "$work/eval" tokens)"
}

# PATTERN METHOD REFIT OPTIONS...
line() {
    pattern=$1 method=$2 refit=$3
    shift 3
    "$espalier" prune "$model" -p "$pattern" -o "$work/model" --force --json \
        --calibrate "$calibration" --method "$method" "$@" >"$work/prune" 2>/dev/null
    echo "$pattern $method $refit $(loss "$work/model") $(number "$work/prune" mean_error)" \
        "$(number "$work/prune" total_seconds)"
}

echo "dense - - $(loss "$model") 0 0"
for pattern in $patterns; do
    for method in ${METHODS:-magnitude wanda ria sparsegpt obs}; do
        for refit in ${REFITS:-no yes}; do
            case $refit in
            no) line "$pattern" "$method" no "$@" ;;
            *) line "$pattern" "$method" yes --refit "$@" ;;
            esac
        done
    done
done

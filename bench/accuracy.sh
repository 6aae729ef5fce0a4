#!/bin/sh
# What pruning costs a model, by pattern and method: prunes and judges it in one setting after the
# other and appends a JSON line for each to RESULTS. Settings that RESULTS already has are left out,
# so that a run that was stopped goes on. `perl bench/accuracy.pl RESULTS` makes the tables of
# docs/accuracy.md.
# Usage: accuracy.sh ESPALIER MODEL CALIBRATION HELDOUT RESULTS [SETTINGS]
#   bench/accuracy.sh build/espalier models/prose models/prose/calibration.txt \
#       models/prose/heldout.txt bench/results/accuracy-prose.jsonl
# CALIBRATION and HELDOUT are texts, or folders of images. HELDOUT-documents.txt, where it is, holds
# the sizes of the documents of HELDOUT.txt; of each its first BYTES bytes are judged.
# SETTINGS: a file of lines "PATTERN METHOD REFIT PERMUTE INPUTS SEED", or - for standard input;
#   METHOD[+SEARCH] as prune's --method and --search; REFIT: yes, no or gradual; PERMUTE: yes, no,
#   turned (values of attention, too), stream (the residual stream turned, by the same samples) or
#   all; INPUTS as prune's --inputs: with dense, errors of layers only. Without SETTINGS those of
#   accuracy_settings.sh. What a model cannot be is left out, and said.
# Environment: TOKENS (20480) of calibration, BYTES (2000; 0: all) of a document, IMAGES (2000),
#   RESAMPLES (2000), THREADS (1: several runs, each with settings of its own, may share a machine),
#   DEVICE (cpu): where layers and algebra of the calibration run and models are judged, as --device.
set -eu
espalier=$1 model=$2 calibration=$3 heldout=$4 results=$5
settings=${6:-}
here=$(dirname "$0")
tokens=${TOKENS:-20480} bytes=${BYTES:-2000} images=${IMAGES:-2000} resamples=${RESAMPLES:-2000}
threads=${THREADS:-1} device=${DEVICE:-cpu}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

# What all settings are judged by: $judge.
if [ -d "$heldout" ]; then
    judge="--images $heldout --max-images $images"
else
    documents=${heldout%.txt}-documents.txt
    judge="--text $heldout"
    if [ -e "$documents" ]; then
        perl "$here/accuracy_text.pl" "$heldout" "$documents" "$bytes" "$work/text" "$work/sizes"
        judge="--text $work/text --documents $work/sizes"
    fi
fi

# KEY: no line of results has it
missing() { ! { [ -e "$results" ] && grep -qF "$1" "$results"; }; }

# KEY PRUNE EVAL: files of JSON, or - ; appends a line whole or not at all
append() {
    perl "$here/accuracy_line.pl" "$@" >"$work/line" && cat "$work/line" >>"$results"
}

# FOLDER
judge() {
    # shellcheck disable=SC2086
    "$espalier" eval "$1" $judge --baseline "$model" --bootstrap "$resamples" \
        --threads "$threads" --device "$device" --json >"$work/eval"
}

# KEY
leave_out() {
    echo "left out: $1" >&2
    cat "$work/errors" >&2
}

# PATTERN METHOD REFIT PERMUTE INPUTS SEED
line() {
    pattern=$1 method=${2%%+*} search=auto refit=$3 permute=$4 inputs=$5 seed=$6
    case $2 in *+*) search=${2#*+} ;; esac
    key=$(printf '"setting":{"pattern":"%s","method":"%s","search":"%s","refit":"%s","permute":"%s","inputs":"%s","seed":%s}' \
        "$pattern" "$method" "$search" "$refit" "$permute" "$inputs" "$seed")
    missing "$key" || return 0
    set -- -p "$pattern" --search "$search" --threads "$threads"
    # Magnitude alone looks at nothing, and so may permute without a calibration.
    if [ "$method/$refit/$inputs" != magnitude/no/pruned ]; then
        set -- "$@" --calibrate "$calibration" --calibrate-tokens "$tokens" --seed "$seed" \
            --method "$method" --inputs "$inputs" --device "$device"
    fi
    [ "$refit" = no ] || set -- "$@" --refit
    [ "$refit" != gradual ] || set -- "$@" --gradual
    case $permute in
    yes) set -- "$@" --permute ;;
    turned | all) set -- "$@" --permute --turn-values ;;
    esac
    from=$model
    case $permute in
    stream | all)
        from=$work/turned
        "$espalier" turn "$model" -p "$pattern" -o "$from" --force --quiet --calibrate "$calibration" \
            --calibrate-tokens "$tokens" --seed "$seed" --threads "$threads" --device "$device" \
            >"$work/turn" 2>"$work/errors" || { leave_out "$key"; return 0; }
        ;;
    esac
    if ! "$espalier" prune "$from" -o "$work/model" --force --json "$@" >"$work/prune" 2>"$work/errors"; then
        leave_out "$key"
        return 0
    fi
    if [ "$inputs" = dense ]; then
        append "$key" "$work/prune" -
    else
        judge "$work/model" 2>"$work/errors" || { cat "$work/errors" >&2; exit 1; }
        append "$key" "$work/prune" "$work/eval"
    fi
    echo "$pattern $method $search refit $refit permute $permute inputs $inputs seed $seed" >&2
}

dense='"setting":{"pattern":"dense"}'
if missing "$dense"; then
    judge "$model" 2>"$work/errors" || { cat "$work/errors" >&2; exit 1; }
    append "$dense" - "$work/eval"
fi
if [ -n "$settings" ]; then
    cat -- "$settings"
else
    sh "$here/accuracy_settings.sh"
fi >"$work/settings"
while read -r pattern method refit permute inputs seed; do
    line "$pattern" "$method" "$refit" "$permute" "$inputs" "$seed" </dev/null
done <"$work/settings"

#!/bin/sh
# What two devices say of the same models: `espalier eval` and `run` on each, compared, a line a comparison.
# Usage: agree.sh PROGRAM [SIDE [SIDE]]. A side is DEVICE or DEVICE/COMPUTE; without any: cuda:0 and cpu/f32.
# Models: models/prose and models/glyphs with their weights of bf16 and with weights of f16 (on a GPU activations have
# the weights' type), dense and pruned into 2:4 and 64:2:8 by magnitude; and the small random models of the tests,
# where PROGRAM has tests/make_tiny_model beside it. Environment:
#   MODELS   of: prose glyphs tiny (all of these)
#   TYPES    of weights, of: bf16 f16 (both)
#   PATTERNS of: dense 2:4 64:2:8 (all of these)
#   TOKENS (20000)   of models/prose/heldout.txt that are scored
set -u
[ $# -ge 1 ] || { echo "usage: $0 PROGRAM [SIDE [SIDE]]" >&2; exit 2; }
program=$1 first=${2:-cuda:0} second=${3:-cpu/f32}
models=${MODELS:-prose glyphs tiny} types=${TYPES:-bf16 f16} patterns=${PATTERNS:-dense 2:4 64:2:8}
tokens=${TOKENS:-20000}
here=$(cd "$(dirname "$0")/.." && pwd)
tiny=$(dirname "$program")/tests/make_tiny_model
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

# How far apart results may be. Scores and vectors, relative to the largest of their kind: what
# tests/model/test_cuda_models.c allows.
outputs_apart() { case $1 in f16) echo 0.02 ;; *) echo 0.12 ;; esac }
# Perplexities, relative: of the text, a mean over thousands of tokens in which rounding cancels, and of a window. 2:4
# by magnitude alone is less sure of a text, and 64:2:8 knows nothing of it any more: 15 nats a token, which rounding
# moves by as large a share as others.
perplexity_apart() { case $1 in dense) echo 0.002 0.01 ;; 2:4) echo 0.005 0.04 ;; *) echo 0.02 0.1 ;; esac }
tokens_apart=0.5                                                      # nats, of two that are taken for the likeliest
entropy_apart=0.02                                                    # relative, of images' labels
same_labels() { case $1 in 64:2:8) echo 0.9 ;; *) echo 0.98 ;; esac } # least share of images

wanted() { case " $models " in *" $1 "*) ;; *) return 1 ;; esac }

fail() {
    echo "FAIL $name: $*"
    failed=$((failed + 1))
}

# on SIDE FILE COMMAND...: what a side says, as JSON in FILE.
on() {
    side=$1 file=$2 compute=auto
    shift 2
    case $side in */*) compute=${side#*/} ;; esac
    "$program" "$@" --json -q --device "${side%%/*}" --compute "$compute" >"$file" 2>"$work/error" && return
    fail "on $side: $(head -n 1 "$work/error")"
    return 1
}

both() { on "$first" "$work/one" "$@" && on "$second" "$work/other" "$@"; }

# judge KIND BOUND...: of what both have said.
judge() {
    kind=$1
    shift
    if perl "$here/tools/agree.pl" "$kind" "$name" "$@" "$work/one" "$work/other"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
}

# Greedy texts part where two tokens are about as likely, and are different texts from there on. So the first
# difference is shown, and the second side says how much likelier it finds its own token there.
texts() {
    both run "$model" "$@" || return
    rm -f "$work/differ"
    perl "$here/tools/agree.pl" texts "$name" "$work" "$work/one" "$work/other" && passed=$((passed + 1)) && return
    [ -s "$work/differ" ] || { failed=$((failed + 1)); return; }
    all=$name
    while read -r number; do
        name="$all, number $number"
        on "$second" "$work/one" eval "$model" --text "$work/$number.one" --stride 1 --bootstrap 10 &&
            on "$second" "$work/other" eval "$model" --text "$work/$number.other" --stride 1 --bootstrap 10 &&
            judge tie "$tokens_apart"
    done <"$work/differ"
}

# with_patterns CHECK: of the model and of its copies.
with_patterns() {
    check=$1 source=$2 type=$3
    for pattern in $patterns; do
        label="$(basename "$source")/$type/$pattern" model=$source name=$label
        if [ "$pattern" != dense ]; then
            model=$work/pruned
            rm -rf "$model"
            "$program" prune "$source" -p "$pattern" -o "$model" -q >"$work/error" 2>&1 ||
                { fail "prune: $(tail -n 1 "$work/error")"; continue; }
        fi
        $check
    done
}

# with_types CHECK MODEL
with_types() {
    for type in $types; do
        folder=$2
        if [ "$type" = f16 ]; then
            folder=$work/f16/$(basename "$2")
            mkdir -p "$work/f16" && cp -R "$2" "$folder" && chmod -R u+w "$folder"
            name="$(basename "$2")/f16"
            perl "$here/tools/agree.pl" halve "$name" "$folder/model.safetensors" ||
                { failed=$((failed + 1)); continue; }
        fi
        with_patterns "$1" "$folder" "$type"
    done
}

check_prose() {
    name="$label, perplexity"
    # shellcheck disable=SC2046
    both eval "$model" --text "$here/models/prose/heldout.txt" --max-tokens "$tokens" --bootstrap 10 &&
        judge perplexity $(perplexity_apart "$pattern")
    name="$label, four texts together"
    texts --prompts "$work/prompts" -n 96
    name="$label, a text of 300 tokens"
    texts --prompt "$(head -n 1 "$work/prompts")" -n 300
}

check_glyphs() {
    name="$label, entropy of the labels"
    both eval "$model" --images "$here/models/glyphs/sample" && judge entropy $entropy_apart
    name="$label, scores"
    both run "$model" "$here"/models/glyphs/sample/*/*.png --top 47 &&
        judge scores "$(outputs_apart "$type")" "$(same_labels "$pattern")"
}

check_tiny() {
    for kind in plain bert sam; do
        "$tiny" "$work/$kind" "$kind" || exit 1
    done
    bound=$(outputs_apart bf16)
    model=$work/plain name="tiny decoder, perplexity"
    both eval "$model" --text "$work/prompts" --bootstrap 10 && judge perplexity 0.02 0.1
    model=$work/bert name="tiny encoder, vectors"
    both run "$model" --text-file "$work/prompts" && judge vectors "$bound"
    model=$work/sam name="tiny image encoder, embedding"
    on "$first" "$work/said" run "$model" "$picture" -o "$work/one.map" &&
        on "$second" "$work/said" run "$model" "$picture" -o "$work/other.map" || return
    mv "$work/one.map" "$work/one"
    mv "$work/other.map" "$work/other"
    judge maps "$bound"
}

cat >"$work/prompts" <<END
The configuration file
A man walked into the house, and when he had shut the door behind him,
To install the package, the administrator has to
In the year of the great flood there was a king who had three sons. The eldest of them
END
picture=$here/models/glyphs/sample/A/00010.png
echo "$first against $second"
wanted prose && with_types check_prose "$here/models/prose"
wanted glyphs && with_types check_glyphs "$here/models/glyphs"
if wanted tiny && [ -x "$tiny" ]; then
    check_tiny
elif wanted tiny; then
    echo "not run: the tests' small models: there is no $tiny"
    skipped=$((skipped + 1))
fi
echo "agree: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]

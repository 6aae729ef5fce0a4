#!/bin/sh
# A model through the whole program: pruned, verified, run and judged against its dense self, for each pattern.
# Usage: try_model.sh MODEL FOLDER text|images|retrieval PATH [ARGUMENTS OF RUN...]
#   sh tools/try_model.sh models/prose out/try text models/prose/heldout.txt -p "Once" -n 20
#   sh tools/try_model.sh models/glyphs out/try images models/glyphs/sample models/glyphs/sample/A/*.png
#   sh tools/try_model.sh MINILM out/try retrieval PAIRS --text "a text"
# PATTERNS (2:4 64:2:8 128:2:5), ESPALIER (build/espalier), DEVICE (cpu): environment. Pruned models stay in FOLDER.
set -eu
if [ $# -lt 4 ]; then
    sed -n '3s/^# //p' "$0" >&2
    exit 2
fi
model=$1 folder=$2 kind=$3 path=$4
shift 4
program=${ESPALIER:-build/espalier} device=${DEVICE:-cpu}
mkdir -p "$folder"
for pattern in ${PATTERNS:-2:4 64:2:8 128:2:5}; do
    out=$folder/$(echo "$pattern" | tr ':' '-')
    echo "== $pattern"
    # Not into tail: its status would hide that of a command that fails, and an older folder be judged.
    "$program" prune "$model" -p "$pattern" -o "$out" --force --quiet >"$folder/table"
    tail -n 3 "$folder/table"
    "$program" verify "$out" >"$folder/table"
    tail -n 2 "$folder/table"
    "$program" run "$out" --device "$device" --quiet "$@"
    echo
    "$program" eval "$out" --baseline "$model" --device "$device" --quiet "--$kind" "$path"
done

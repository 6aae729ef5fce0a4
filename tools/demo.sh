#!/bin/sh
# What espalier does, on a real model: prunes models/prose into four patterns, verifies the folders,
# and prints one table of size, quality and speed. Usage: demo.sh PROGRAM (from the repository's root)
set -eu
program=${1:?usage: demo.sh PROGRAM}
model=models/prose
text=$model/heldout.txt
patterns=2:4,64:2:5,64:2:8,128:2:8
work=${ESPALIER_DEMO_FOLDER:-out/demo}
tokens=${ESPALIER_DEMO_TOKENS:-20000}
started=$(date +%s)
mkdir -p "$work"

"$program" --version
echo
echo "== dense against pruned: bytes, quality, speed =="
"$program" bench "$model" --patterns "$patterns" --text "$text" --max-tokens "$tokens" --work "$work"
echo
echo "== verify: structure, format, checksums of every folder that was written =="
for folder in 2-4 64-2-5 64-2-8 128-2-8; do
    printf '%-8s ' "$folder"
    "$program" verify "$work/$folder" --strict >"$work/verified"
    grep 'checksums verified' "$work/verified"
done
rm -f "$work/verified"
echo
echo "== the same prompt, greedy =="
prompt='The old house stood at the end of the road, and'
for folder in "$model" "$work/2-4"; do
    echo "-- $folder"
    printf '%s' "$prompt"
    "$program" run "$folder" --prompt "$prompt" --max-tokens 48 --quiet
done
cat <<END

Magnitude pruning in one shot, without any training afterwards, costs this much quality; what is
measured here is the pruning, the files and the speed.
Program: $program   dense model: $model   pruned models: $work
Try:  $program prune $model -p 64:2:8 -o out/mine && $program eval out/mine --text $text --baseline $model
Took $(($(date +%s) - started)) s after the build.
END

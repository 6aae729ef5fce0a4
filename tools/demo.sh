#!/bin/sh
# What espalier does, on a real model: prunes models/prose into four patterns, verifies the folders,
# and prints one table of size, quality and speed, and one more of a GPU that can be used. Where the GPU
# fails, the rest goes on and the exit code is the GPU's. Usage: demo.sh PROGRAM (from the repository's
# root; PROGRAM may be a build that was carried in)
set -eu
program=${1:?usage: demo.sh PROGRAM}
model=models/prose
text=$model/heldout.txt
patterns=2:4,64:2:5,64:2:8,128:2:8
work=${ESPALIER_DEMO_FOLDER:-out/demo}
tokens=${ESPALIER_DEMO_TOKENS:-20000}
started=$(date +%s)
gpu_code=0
mkdir -p "$work"

# compare DEVICE: the table of the dense model and its pruned forms.
compare() {
    "$program" bench "$model" --patterns "$patterns" --text "$text" --max-tokens "$tokens" --work "$work" --device "$1"
}
# The first GPU as the list of devices has it, or what stands there in place of one.
first_gpu() { "$program" devices --json | tr '{' '\n' | grep '^"name":"cuda' | head -n 1; }

"$program" --version
echo
echo "== dense against pruned: bytes, quality, speed =="
compare cpu
echo
gpu=$(first_gpu)
case $gpu in
*'"usable":true'*)
    echo "== the same on a GPU =="
    compare cuda:0 || gpu_code=$?
    [ "$gpu_code" = 0 ] || echo "GPU: failed with exit code $gpu_code"
    ;;
*)
    reason=$(echo "$gpu" | sed -n 's/.*"why_not":"\([^"]*\)".*/\1/p')
    echo "GPU: not run: ${reason:-no GPU that can be used}"
    ;;
esac
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
exit "$gpu_code"

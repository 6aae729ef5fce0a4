#!/bin/sh
# Everything that needs a GPU, in one go: tests, random problems, the memory checkers, models beside the processor's,
# tuning and the timing tables. Usage: gpu_check.sh [BUILD_DIR [OUT_DIR]]. BUILD_DIR is a build with CUDA, made there
# or carried in; without one it is built here. Environment:
#   STEPS   of: tests random sanitizers agree tune rivals bench blocks models (all of these), and table
#   SEEDS (4) draw ROUNDS (500) random problems each, of each family of kernels
#   SHAPES, FEW   of the timing table, OUTxINxTOKENS; BF16: of bf16 beside f16
#   MODELS   of step models: folders of bench/configs; COMPILE=1: PyTorch's compiled models too, which takes minutes
#   TABLE_SECONDS (150)   of step table: the times that ship (tools/default_times.sh)
# The last line says how many steps passed and failed.
set -u
build=${1:-build-cuda} out=${2:-gpu-check}
rounds=${ROUNDS:-500} seeds=${SEEDS:-4} steps=${STEPS:-tests random sanitizers agree tune rivals bench blocks models}
here=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
[ -d "$here/models/prose" ] && TEST_SOURCE_DIR=$here && export TEST_SOURCE_DIR
if [ ! -x "$build/espalier" ] && [ -f CMakePresets.json ]; then
    cmake --preset cuda -G Ninja --log-level=WARNING && cmake --build "$build" || exit 1
fi
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null || {
    echo "skipped: no GPU"
    exit 77
}
passed=0 failed=0 skipped=0
wanted() { case " $steps " in *" $1 "*) ;; *) return 1 ;; esac }
# settle NAME STATUS SECONDS: one line for a step, and the first errors of its log.
settle() {
    # A program without such cases is no step.
    tail -n 1 "$out/$1.log" | grep -q ': 0 passed, 0 failed, 0 skipped$' && [ "$2" = 0 ] && return
    echo "$1: status $2 ($3 s) $(tail -n 1 "$out/$1.log")"
    if [ "$2" = 0 ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        grep -m 5 -E "^FAIL|ERROR|error" "$out/$1.log"
    fi
}
step() {
    name=$1
    shift
    started=$(date +%s)
    "$@" >"$out/$name.log" 2>&1
    settle "$name" $? $(($(date +%s) - started))
}
# later NAME COMMAND...: a step that may run beside others; at_once N runs what has gathered, N at a time.
later() {
    name=$1
    shift
    echo "s=\$(date +%s); { $*; } >$out/$name.log 2>&1; echo \$? \$((\$(date +%s) - s)) >$out/$name.status" >>"$out/gathered"
    names="$names $name"
}
names=''
at_once() {
    [ -n "$names" ] || return
    tr '\n' '\0' <"$out/gathered" | xargs -0 -n 1 -P "$1" sh -c
    for name in $names; do
        # Without a status its shell was killed, or xargs gave up behind one that was.
        [ -s "$out/$name.status" ] || echo 137 0 >"$out/$name.status"
        # shellcheck disable=SC2046
        settle "$name" $(cat "$out/$name.status")
        rm -f "$out/$name.status"
    done
    rm -f "$out/gathered"
    names=''
}
not_run() {
    echo "not run: $*"
    skipped=$((skipped + 1))
}

# ---- right? ----
rm -f "$out/gathered"
# The reference on the processor takes most of the time of many cases, so as many run at a time as there are
# processors. Random problems are small and many: processes share a GPU by turns, and each of their thousands of short
# calls would wait for a turn. Attention's reference takes longer than its calls.
for test in "$build"/tests/test_cuda*; do
    program=$(basename "$test")
    "$test" -l >"$out/cases-$program"
    [ -s "$out/cases-$program" ] || step "$program" false
    while wanted tests && read -r case; do
        later "$program-$(echo "$case" | tr ' ' '_')" "$test '$case'"
    done <"$out/cases-$program"
done
at_once "$(nproc)"
# draw TEST: its random cases from each seed.
draw() {
    program=$(basename "$1")
    while read -r case; do
        case $case in random*) ;; *) continue ;; esac
        seed=0
        while [ $seed -lt "$seeds" ]; do
            seed=$((seed + 1))
            later "$program-$(echo "$case" | tr ' ' '_')-$seed" "TEST_SEED=$seed TEST_ROUNDS=$rounds $1 '$case'"
        done
    done <"$out/cases-$program"
}
if wanted random; then
    draw "$build/tests/test_cuda_attention"
    at_once "$(nproc)"
    for test in "$build"/tests/test_cuda*; do
        case $test in *_attention) ;; *) draw "$test" ;; esac
    done
    at_once 1
fi
if wanted sanitizers && command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        for test in "$build"/tests/test_cuda*; do
            "$test" -l | grep -q sanitizer || continue
            later "$tool-$(basename "$test")" "compute-sanitizer --tool $tool --error-exitcode 9 $test sanitizer"
        done
    done
    at_once "$(nproc)"
elif wanted sanitizers; then
    not_run "memcheck, racecheck, initcheck, synccheck: compute-sanitizer is not there"
fi

# ---- the same as on the processor? ----
if wanted agree; then
    step agree env MODELS= sh "$here/tools/agree.sh" "$build/espalier" cuda:0 cpu/f32
    grep '^ok ' "$out/agree.log"
fi

# ---- tuned? ----
espalier() { "$build/espalier" "$@"; }
# What was measured is what a plan goes by afterwards.
tuned() {
    ESPALIER_TUNING=$out/tuning espalier tune --device cuda:0 --rounds 5 "$@" || return 1
    for problem in "$@"; do
        ESPALIER_TUNING=$out/tuning espalier bench --device cuda:0 --rounds 1 --against none --explain "$problem" |
            grep -E '^chosen: .* us measured at [0-9]+ tokens[;,]?' || return 1
    done
}
wanted tune && step tune tuned matmul/2:4/f16/4096x4096x512 matmul/64:2:8/f16/4096x4096x1 \
    matmul/64:2:8/bf16/4096x4096x4096 matmul/64:2:5/f16/768x768x64
wanted table && step table sh "$here/tools/default_times.sh" "$build/espalier" "$out/default-times" "${TABLE_SECONDS:-150}"

# ---- a rival that crashes, or computes nothing, is named and does not stop the bench ----
crash() {
    reason=$1
    ESPALIER_CUSPARSELT=$(cd "$build" && pwd)/tests/libfake_cusparselt.so \
        espalier bench --device cuda:0 --rounds 1 --json matmul/2:4/f16/256x256x64 >"$out/crash.json" || return 1
    grep -o '"rivals_not_run":{[^}]*}' "$out/crash.json"
    grep -q "\"cusparselt_features\":\"not run: $reason" "$out/crash.json" &&
        grep -q '"cublas_features":[0-9]' "$out/crash.json"
}
if wanted rivals && [ -e "$build/tests/libfake_cusparselt.so" ]; then
    step wrong-rival crash "cuSPARSELt differs"
    FAKE_CUSPARSELT=dies && export FAKE_CUSPARSELT
    step dying-rival crash "cuSPARSELt's process was ended by signal 6"
    unset FAKE_CUSPARSELT
fi

# ---- fast? ----
# measure FILE SHAPE...: of each shape the products of $patterns in $types.
measure() {
    file=$1
    shift
    for shape in "$@"; do
        set --
        for type in $types; do
            for pattern in $patterns; do
                set -- "$@" "matmul/$pattern/$type/$shape"
            done
        done
        espalier bench --device cuda:0 --rounds 9 --json -q "$@" >>"$out/$file" || return 1
        echo "$shape: $# problems"
    done
}
if wanted bench; then
    : >"$out/gpu.jsonl"
    : >"$out/gpu-bf16.jsonl"
    types=f16
    blocks='' few_blocks=''
    if espalier kernels | grep -q 'matmul_bsr_f16_f16__cuda'; then
        blocks="block:16x16@0.9 block:32x32@0.9 block:64x64@0.8 block:64x64@0.9 block:128x128@0.8"
        few_blocks="block:32x32@0.9 block:64x64@0.8 block:64x64@0.5"
    fi
    patterns="2:4 64:2:5 128:2:5 256:2:5 64:2:8 128:2:8 256:2:8 64:2:16 128:2:16 256:2:16 $blocks"
    # shellcheck disable=SC2086
    step bench measure gpu.jsonl ${SHAPES:-4096x4096x4096 11008x4096x4096 4096x11008x4096 3072x768x12608 4096x4096x512}
    patterns="dense 2:4 64:2:5 64:2:8 128:2:8 64:2:16 $few_blocks"
    # shellcheck disable=SC2086
    step bench-few measure gpu.jsonl ${FEW:-11008x4096x1 11008x4096x8 11008x4096x16}
    types="f16 bf16" patterns="2:4 64:2:5 128:2:8 64:2:16"
    # shellcheck disable=SC2086
    step bench-bf16 measure gpu-bf16.jsonl ${BF16:-4096x4096x4096 3072x768x12608 11008x4096x8}
    perl "$here/bench/gpu.pl" types "$out/gpu-bf16.jsonl" | tee "$out/gpu-bf16.md"
    [ -x "$build/bench/gpu_compress" ] && step compress "$build/bench/gpu_compress" && cat "$out/compress.log"
    perl "$here/bench/gpu.pl" table "$out/gpu.jsonl" >"$out/gpu.md"
    perl "$here/bench/gpu.pl" figure "$out/gpu.jsonl" >"$out/gpu.svg"
    grep -m 1 -o '"rivals_not_run":{"cusparselt[^}]*}' "$out/gpu.jsonl"
fi
shares="block:16x16@0.8 block:16x16@0.9 block:32x32@0.8 block:32x32@0.9 block:64x64@0.8 block:64x64@0.9"
# layers LAYER...: products as a model has them, epilogues too, in blocks of each size and share of zeros.
layers() {
    for layer in "$@"; do
        set --
        for pattern in $shares; do
            set -- "$@" "matmul/$pattern/f16/$layer"
        done
        espalier bench --device cuda:0 --rounds 9 --json -q "$@" >>"$out/blocks.jsonl" || return 1
        echo "$layer: $# problems"
    done
}
# The feed-forward layers of ViT-large with 256 images.
if wanted blocks && espalier kernels | grep -q 'matmul_bsr_f16_f16__cuda'; then
    : >"$out/blocks.jsonl"
    step blocks layers 4096x1024x50432/ep:bias+gelu 1024x4096x50432/ep:bias+residual
    perl "$here/bench/gpu.pl" table "$out/blocks.jsonl" | tee "$out/blocks.md"
fi
# whole CONFIG PATTERNS ARGUMENTS...: a model of drawn weights, dense and sparse side by side.
whole() {
    config=$1 patterns=$2
    shift 2
    case " ${MODELS:-deit-small deit-base vit-large sam-vit-huge bert-large llama-2-7b} " in *" $config "*) ;; *) return ;; esac
    step "model-$config$(echo "$*" | tr -d " ")" bench_whole "$@"
}
bench_whole() {
    espalier bench --device cuda:0 --json -q -r 5 --random-weights "$here/bench/configs/$config" -p "$patterns" \
        "$@" >>"$out/models.jsonl"
}
if wanted models; then
    : >"$out/models.jsonl"
    whole deit-small 128:2:5,2:4 --batch 64
    whole deit-base 64:2:8,128:2:8 --batch 1
    whole deit-base 64:2:8,128:2:8 --batch 256
    whole vit-large 64:2:8 --batch 64
    whole sam-vit-huge 2:4,128:2:8 --batch 1
    whole bert-large 64:2:8 --batch 32 --tokens 512
    whole vit-large "$(echo "$shares" | tr ' ' ',')" --batch 256 --skip '*attention*'
    whole llama-2-7b 128:2:8 --batch 1 --tokens 2048
    whole llama-2-7b 64:2:5,64:2:8 --batch 1 --tokens 128
    whole llama-2-7b 64:2:8 --batch 16 --tokens 128
    whole deit-base 64:2:8 --batch 256 --type bf16
    whole llama-2-7b 64:2:8 --batch 1 --tokens 128 --type bf16
    pytorch() { python3 "$here/bench/pytorch_models.py" ${COMPILE:+--compile} "$@"; }
    { pytorch && pytorch --type bf16 deit-base/b256 llama-2-7b/decode1; } >"$out/pytorch.jsonl" 2>"$out/pytorch.log" ||
        not_run "PyTorch's models: see $out/pytorch.log"
    perl "$here/bench/models.pl" join "$out/models.jsonl" "$out/pytorch.jsonl" >"$out/models-joined.jsonl"
    perl "$here/bench/models.pl" table "$out/models.jsonl" "$out/pytorch.jsonl" | tee "$out/models.md"
fi
echo "gpu_check: $passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]

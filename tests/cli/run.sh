#!/bin/sh
# Tests of the program as a user meets it: exit codes, stdout, stderr, JSON, files left behind.
# Usage: run.sh BUILD_DIR SOURCE_DIR. Needs a POSIX shell and perl (JSON is parsed by JSON::PP).
# A case runs one command line; what it should print is in tests/cli/expected/NAME.out, or is checked
# by a pattern. UPDATE=1 rewrites the expected files.
set -u
build=$(cd "$1" && pwd)
source=$(cd "$2" && pwd)
program=$build/espalier
expected=$source/tests/cli/expected
passed=0 failed=0 skipped=0
work=$(mktemp -d "${TMPDIR:-/tmp}/espalier-cli-XXXXXX")
trap 'rm -rf "$work"' EXIT
unset ESPALIER_THREADS ESPALIER_CPU ESPALIER_TUNING NO_COLOR
TMPDIR=$work/tmp
XDG_CACHE_HOME=$work/cache # no times of the machine that this runs on
export TMPDIR XDG_CACHE_HOME
mkdir "$TMPDIR"
cd "$work" || exit 1

for kind in plain nan vocabulary no-bos bert bert-dense-module bert-plain; do
    "$build/tests/make_tiny_model" "$kind" "$kind" || exit 1
done
printf 'A small text.\nIt has two lines, and more than one word in each of them.\n' >text.txt
printf 'no newline at the end' >short.txt
: >empty.txt
printf '%s\n' '{"context": "A small", "choices": [" text", " word", "!"], "answer": 0}' '' \
    '{"context": "", "choices": ["It has two lines", "words"], "answer": 1}' >questions.jsonl

ok() { passed=$((passed + 1)); }
bad() {
    failed=$((failed + 1))
    echo "FAIL cli: $name: $*"
    sed 's/^/    out: /' out | head -n 5
    sed 's/^/    err: /' err | head -n 5
}

# t NAME CODE ARGUMENTS...: runs the program; out and err hold what it printed.
t() {
    name=$1
    code=$2
    shift 2
    "$program" "$@" >out 2>err </dev/null
    got=$?
    if [ "$got" = "$code" ]; then ok; else bad "exit code $got, expected $code: $*"; fi
}
# What the last command printed must hold (or not hold) an extended regular expression.
out_has() { if grep -Eq -- "$1" out; then ok; else bad "stdout does not hold /$1/"; fi; }
err_has() { if grep -Eq -- "$1" err; then ok; else bad "stderr does not hold /$1/"; fi; }
out_lacks() { if grep -Eq -- "$1" out; then bad "stdout holds /$1/"; else ok; fi; }
quiet_out() { if [ -s out ]; then bad "stdout should be empty"; else ok; fi; }
quiet_err() { if [ -s err ]; then bad "stderr should be empty"; else ok; fi; }
one_line_err() { if [ "$(wc -l <err)" = 1 ]; then ok; else bad "stderr should be one line"; fi; }
# Byte for byte, from a file.
same_out() {
    if [ "${UPDATE:-}" = 1 ]; then cp out "$expected/$1.out"; fi
    if cmp -s out "$expected/$1.out"; then ok; else
        bad "stdout differs from tests/cli/expected/$1.out"
        diff out "$expected/$1.out" | head -n 10
    fi
}
# json NAME EXPRESSION: every line of stdout is JSON with schema and version; the expression is true of
# the first ($j) and of all (@j).
json() {
    if perl -MJSON::PP -e '
        my @j = map { decode_json($_) } <STDIN>;
        die "no line\n" if !@j;
        for (@j) { die "no schema\n" if $_->{schema} !~ /^espalier\.\w+$/ || $_->{version} != 1; }
        my $j = $j[0];
        exit(eval($ARGV[0]) ? 0 : 1);' "$1" <out 2>json.err; then ok; else
        bad "JSON: $1 $(cat json.err)"
    fi
}
no_leftovers() {
    left=$(find "$TMPDIR" . -mindepth 1 -maxdepth 1 | grep -E 'espalier-|\.tmp|partial' | head -n 3)
    if [ -z "$left" ]; then ok; else bad "left over: $left"; fi
}

# ---- help, version, usage ----
t "help" 0 --help; same_out help; quiet_err
t "short help" 0 -h; same_out help
t "version" 0 --version; out_has '^espalier [0-9]+\.[0-9]+\.[0-9]+ \(.+\)$'; quiet_err
for command in info advise prune shrink turn convert eval run bench tune verify kernels devices; do
    t "$command --help" 0 "$command" --help; same_out "help-$command"; quiet_err
    t "$command -h after others" 0 "$command" --json -h; same_out "help-$command"
    t "$command: unknown option" 2 "$command" --no-such-thing; quiet_out; one_line_err
    err_has "^espalier: error: unknown option '--no-such-thing'.*see 'espalier $command --help' \[usage.unknown_option\]$"
    t "$command: threads not a number" 2 "$command" --threads 2x plain
    err_has "^espalier: error: --threads '2x': a whole number from 0 to 1024 was expected.*\[usage.bad_value\]$"
    t "$command: threads out of range" 2 "$command" --threads 1025
    t "$command: threads negative" 2 "$command" --threads=-1
    t "$command: value missing" 2 "$command" --threads; err_has 'usage.missing_value'
    t "$command: compute unknown" 2 "$command" --compute f64; err_has 'one of auto, f32, bf16'
    t "$command: value for a flag" 2 "$command" --json=yes; err_has 'takes no value.*usage.extra_value'
    t "$command: JSON error" 2 "$command" --json --thread 1
    json '$j->{schema} eq "espalier.error" && $j->{code} eq "usage.unknown_option" && $j->{exit_code} == 2 && $j->{status} eq "bad_argument"'
    err_has 'did you mean --threads'
done
t "tune: nothing given" 2 tune; err_has 'usage.missing_argument'; one_line_err
for command in info prune convert eval run verify; do
    t "$command: no model" 2 "$command"; err_has 'usage.missing_argument'; one_line_err
    t "$command: two models" 2 "$command" plain nan; err_has "unexpected argument 'nan'|takes no images"
done
t "no command" 2; err_has 'usage.missing_command'
t "unknown command" 2 prun; err_has "unknown command 'prun'; did you mean prune\?; see 'espalier --help' \[usage.unknown_command\]"
t "far from any command" 2 frobnicate; err_has "unknown command 'frobnicate'; see"
t "unknown command, JSON" 2 frobnicate --json; json '$j->{code} eq "usage.unknown_command"'
t "unknown short option" 2 info -Z plain; err_has "unknown option '-Z'"
t "control bytes in a message" 2 "$(printf 'a\033[31mb')"; err_has "unknown command 'a\?\[31mb'"
t "options after --" 3 info -- --json; err_has 'file.not_found|checkpoint'
t "prune: no pattern" 2 prune plain -o x; err_has '\-\-pattern PATTERN must be given'
t "prune: no target" 2 prune plain -p 2:4; err_has '\-\-out FOLDER must be given'
t "prune: wrong pattern" 2 prune plain -p 2:x -o x; err_has '\[pattern\.'
t "prune: wrong score" 2 prune plain -p 2:4 -o x --score cube; err_has 'one of abs, square'
t "prune: rule without =" 2 prune plain -p 2:4 -o x --pattern-for abc; err_has 'GLOB=PATTERN'
t "prune: rule with a wrong pattern" 2 prune plain -p 2:4 -o x --pattern-for 'a=4:2'
t "prune: rule that matches nothing" 2 prune plain -p 2:4 -o x --pattern-for 'zzz*=2:4'; err_has 'prune.glob_matches_nothing'
t "prune: skip that matches nothing" 2 prune plain -p 2:4 -o x --skip zzz; err_has 'prune.glob_matches_nothing'
t "convert: neither" 2 convert plain -o x; err_has 'either --compress or --dense'
t "convert: both" 2 convert plain -o x --dense --compress -p 2:4
t "convert: no pattern" 2 convert plain -o x --compress; err_has 'needs --pattern'
t "convert: dense with a pattern" 2 convert plain -o x --dense -p 2:4; err_has 'usage.extra_option'
t "convert: no target" 2 convert plain --dense; err_has '\-\-out FOLDER must be given'
t "eval: no text" 2 eval plain; err_has 'one of --text, --retrieval, --multiple-choice and --images must be given'
t "eval: both" 2 eval bert --text text.txt --retrieval pairs.tsv; err_has '\[usage.extra_option\]'
t "run: two prompts" 2 run plain --prompt a --prompt-file text.txt; err_has 'exclude each other'
t "run: temperature" 2 run plain --prompt a --temperature nan; err_has 'a number from 0 to 100'
t "run: temperature below 0" 2 run plain --prompt a --temperature=-0.1
t "run: top-p" 2 run plain --prompt a --top-p 1.5
t "run: seed" 2 run plain --prompt a --seed 99999999999999999999
t "bench: patterns without a model" 2 bench --patterns 2:4; err_has 'needs one model'
t "bench: empty pattern" 2 bench plain --patterns 2:4,,4:8; err_has '\[pattern\.'
t "device unknown" 2 eval plain --text text.txt --device gpu; err_has 'device.unknown'
t "problem wrong" 2 kernels matmul/2:4/bf16/64x64; err_has '\[problem\.|\[matmul\.'

# ---- info, verify, kernels, devices ----
t "info" 0 info plain; same_out info; quiet_err
t "info --tensors" 0 info plain --tensors; same_out info-tensors
t "info, JSON" 0 info plain --json --tensors; quiet_err
json '@j == 1 && $j->{parameters} == 108992 && @{$j->{tensors}} == 20 && !$j->{compressed} && $j->{config}{architecture} eq "LlamaForCausalLM" && $j->{patterns}[0]{pattern} eq "dense"'
t "info of a lone file" 0 info plain/model.safetensors; out_has 'parameters +108992'
t "info of nothing" 3 info absent; quiet_out; one_line_err
t "info of nothing, JSON" 3 info absent --json; json '$j->{schema} eq "espalier.error" && $j->{exit_code} == 3 && length $j->{message}'
t "info of a text" 3 info text.txt
t "verify" 0 verify plain; same_out verify; quiet_err
t "verify, JSON" 0 verify plain --json; json '$j->{tensors} == 20 && @{$j->{layers}} == 20 && $j->{nans} == 0'
t "verify: NaN warns" 0 verify nan; err_has 'warning: there are NaN'
t "verify: NaN, strict" 5 verify nan --strict; err_has '\[model.not_finite\]'
t "verify: NaN, strict, JSON" 5 verify nan --strict --json; json '$j->{code} eq "model.not_finite" && $j->{exit_code} == 5'
t "kernels" 0 kernels; out_has '^kernel +device +format'; out_has 'matmul_panel_'
t "kernels, JSON" 0 kernels --json; json '@{$j->{kernels}} >= 3 && !grep { !length $_->{idea} } @{$j->{kernels}}'
t "kernels for a problem" 0 kernels matmul/64:2:8/bf16/256x256x1; out_has ' chosen$'
t "kernels for a problem, JSON" 0 kernels --json matmul/2:4/f32/64x64x3 --device ref
json '$j->{device} eq "ref" && (grep { $_->{name} eq $j->{chosen} && $_->{can_run} } @{$j->{kernels}}) == 1'
t "kernels: none of that name" 4 kernels matmul/2:4/f32/64x64x3 --kernel 'zzz*'; err_has '\[plan.no_kernel\]'
t "devices" 0 devices; out_has '^ref '; out_has '^cpu '
t "devices, JSON" 0 devices --json; json '(grep { $_->{name} eq "cpu" && $_->{usable} } @{$j->{devices}}) == 1'

# ---- prune, convert ----
t "dry run" 0 prune plain -p 128:2:8 --dry-run; same_out prune-dry-run; quiet_err
t "dry run makes nothing" 0 prune plain -p 2:4 -n -o dry
if [ -e dry ]; then bad "the folder is there"; else ok; fi
t "prune" 0 prune plain -p 64:2:8 -o p; quiet_err
out_has '^model.layers.0.mlp.up_proj.weight +176x64 +bf16 +64:2:8 +0.7500 '
out_has 'V=64 clamped to out=32'; out_has '14 of 14 linear layers change: 184320 -> 53[0-9]{3} bytes, ratio 0\.2[0-9]'
out_has 'weights/s'; out_has '^written: p$'; no_leftovers
t "prune again" 1 prune plain -p 64:2:8 -o p; err_has '\[checkpoint.exists\]'
t "prune, forced" 0 prune plain -p 64:2:8 -o p --force
t "prune over a folder that is not ours" 1 prune plain -p 2:4 -o nan --force; err_has '\[checkpoint.not_ours\]'
t "prune what is pruned" 2 prune p -p 2:4 -o pp; err_has '\[prune.already_compressed\]'
t "prune, JSON" 0 prune plain -p 2:4 -o p24 --json --pattern-for '*.mlp.*=64:2:5' --skip '*q_proj'
json '$j->{schema} eq "espalier.prune" && $j->{pruned_layers} == 12 && @{$j->{layers}} == 20 && !$j->{dry_run} && $j->{out} eq "p24"'
json '(grep { $_->{pattern} eq "64:2:5" } @{$j->{layers}}) == 6 && (grep { $_->{note} eq "skipped" } @{$j->{layers}}) == 2'
json '!grep { $_->{pruned} && !($_->{retained_energy} > 0 && $_->{retained_energy} < 1) } @{$j->{layers}}'
for search in greedy exact swaps; do
    t "search $search" 0 prune plain -p 64:2:8 -o "s-$search" --search "$search" --score square
done
t "search exact above M 10" 2 prune plain -p 64:2:16 -o x --search exact
for pattern in unstructured@0.7 block:4x8@0.5 rows@0.5 cols@0.5; do
    t "prune to $pattern" 0 prune plain -p "$pattern" -o "zoo-$pattern" --scope row
    t "verify $pattern" 0 verify "zoo-$pattern"; out_has 'compressed tensors'
    t "evaluate $pattern" 0 eval "zoo-$pattern" --text text.txt --compute f32; out_has 'perplexity'
    mv out cpu.out
    t "evaluate $pattern by the reference" 0 eval "zoo-$pattern" --text text.txt --compute f32 --device ref
    cat cpu.out out | awk '/^perplexity/ { p[n++] = $2 } END { d = (p[0] - p[1]) / p[1]; exit !(n == 2 && d * d < 1e-8) }' &&
        ok || bad "cpu and ref differ"
done
t "an unknown scope" 2 prune plain -p unstructured@0.7 -o x --scope all
# With calibration: 3000 words are enough for a model of this size.
awk 'BEGIN { srand(3); for (i = 0; i < 3000; i++) printf "w%d ", int(rand() * 100) }' >words.txt
t "prune, calibrated" 0 prune plain -p 16:2:8 -o pc --calibrate words.txt --refit; quiet_err
out_has 'error 0\.[0-9]+, 0\.[0-9]+ before the refit'; out_has '^calibrated: sparsegpt with refit, targets stream'
[ ! -e pc.unfinished ] || bad "finished layers are still there"
t "prune, in steps" 0 prune plain -p 16:2:8 -o pg --calibrate words.txt --method wanda --refit --gradual --json; json '$j->{calibration}{gradual}'
t "prune, calibrated orders for steps" 0 prune plain -p 16:2:8 -o pg -f --calibrate words.txt --method wanda --refit --gradual --permute; out_has '^calibrated: wanda in steps with refit'; out_has '^permutation: error of'
t "a NaN weight, calibrated" 5 prune nan -p 2:4 -o never --calibrate words.txt
err_has 'up_proj.weight.*entry .0, 0. is -?nan.*\[calibrate.not_finite\]'; rm -rf never.unfinished
t "a NaN weight, by magnitude" 5 prune nan -p 2:4 -o never; one_line_err
err_has 'nan: model.layers.1.mlp.up_proj.weight: entry .0, 0. is -?nan.*verify --strict.*\[prune.not_finite\]'; [ ! -e never ] || bad "it was written"
t "a NaN weight that is left alone" 0 prune nan -p 2:4 -o around --skip '*.1.mlp.up_proj'
for method in sparsegpt obs joint venom; do
    t "rows grouped for $method" 0 prune plain -p 16:2:8 -o "grouped-$method" --calibrate words.txt --method "$method" --regroup -q
    t "verify them" 0 verify "grouped-$method" --strict -q
done
t "a power of the norm" 0 prune plain -p 2:4 -o power -c words.txt --method wanda --norm-power 2 --json; json '$j->{calibration}{norm_power} == 2 && defined $j->{calibration}{dead_inputs}'
t "the paper's power" 0 prune plain -p 2:4 -o power -f -c words.txt --method ria --json; json '$j->{calibration}{norm_power} == 0.5'
t "a power without a norm" 2 prune plain -p 2:4 -o never -c words.txt --method obs --norm-power 2; err_has '\[calibrate.bad_options\]'
t "a power without a calibration" 2 prune plain -p 2:4 -o never --norm-power 2; err_has '--norm-power needs --calibrate.*\[usage.missing_option\]'
t "steps without a refit" 2 prune plain -p 16:2:8 -o never --calibrate words.txt --gradual; err_has '\[calibrate.bad_options\]'
t "steps by joint" 2 prune plain -p 16:2:8 -o never --calibrate words.txt --method joint --refit --gradual; err_has '\[calibrate.bad_options\]'
t "steps without a calibration" 2 prune plain -p 16:2:8 -o never --gradual; err_has '--gradual needs --calibrate.*\[usage.missing_option\]'
t "prune, calibrated and reordered" 0 prune plain -p 16:2:8 -o pp --calibrate words.txt --method joint --refit --permute
out_has 'calibrated: joint with refit'; out_has 'permutation: [1-9]'
t "verify what was reordered" 0 verify pp --strict -q
mkdir pq.unfinished && echo mine >pq.unfinished/notes
t "prune, calibrated, beside something else" 2 prune plain -p 2:4 -o pq -c words.txt; err_has '\[calibrate.bad_state\]'
[ -e pq.unfinished/notes ] || bad "a file of somebody else is gone"
t "verify what was calibrated" 0 verify pc --strict -q
t "prune, calibrated, JSON" 0 prune plain -p 2:4 -o pc --force --calibrate words.txt --method wanda --json
json '$j->{calibration}{method} eq "wanda" && $j->{calibration}{tokens} > 1000'
json '@{$j->{calibration}{layers}} == 14 && $j->{calibration}{layers}[0]{error} > 0'
json '$j->{calibration}{data_crc32c} =~ /^[0-9a-f]{8}$/'
t "prune, few calibration tokens" 0 prune plain -p 2:4 -o pc --force -c words.txt --calibrate-tokens 512
err_has '20 are wanted'
t "prune: text too short to calibrate" 2 prune plain -p 2:4 -o pd -c empty.txt; err_has 'empty.txt: 0 tokens.*\[calibrate.too_short\]'
printf 'a\0b' >no-text.bin
t "prune: calibration by what is no text" 3 prune plain -p 2:4 -o pd -c no-text.bin
err_has 'no-text.bin: byte 1 .*\[text.not_text\]'
t "prune: text that is not there" 3 prune plain -p 2:4 -o pd -c nothing.txt; one_line_err
t "prune: refit of nothing" 2 prune plain -p 2:4 -o pd --refit; err_has 'needs --calibrate'
t "prune: score and calibration" 2 prune plain -p 2:4 -o pd -c words.txt --score square
err_has '--method in place of --score'
t "prune: wrong method" 2 prune plain -p 2:4 -o pd -c words.txt --method best; err_has 'sparsegpt'
t "convert what was calibrated" 0 convert pc --dense -o pz
t "prune what has zeros" 2 prune pz -p 2:4 -o pd -c words.txt; err_has '\[calibrate.already_pruned\]'
t "prune what has zeros, kept" 0 prune pz -p 2:4 -o pd -c words.txt --respect --refit
t "prune an encoder, calibrated" 0 prune bert -p 16:2:8 -o pe -c words.txt --method obd
out_has '12 of 13 linear layers'; out_has '^pooler.dense.weight .* pooler$'
t "prune what a calibration does not reach" 0 prune bert -p dense --pattern-for 'pooler*=16:2:8' --pattern-for '*query*=16:2:8' -o pe2 -c words.txt --method obd
out_has '^2 of 13 linear layers'; out_has 'not reached by calibration'
t "prune into a folder that is not there" 2 prune plain -p 2:4 -o nowhere/x; err_has 'checkpoint.no_parent'
t "prune where nothing can be written" 1 prune plain -p 2:4 -o /proc/x
no_leftovers
t "info of a pruned model" 0 info p; same_out info-pruned
t "verify a pruned model" 0 verify p; out_has '14 compressed tensors'; quiet_err
t "convert to dense" 0 convert p --dense -o d; out_has 'was 64:2:8'
t "verify finds the pattern" 0 verify d --json
json '(grep { $_->{fits} =~ /^(64|32):2:8, 2:4$/ && $_->{pattern} eq "dense" } @{$j->{layers}}) == 14'
t "convert back" 0 convert d --compress -p 64:2:8 -o c
name="the same bytes again"; if cmp -s c/model.safetensors p/model.safetensors; then ok; else bad "they differ"; fi
t "convert what does not fit" 5 convert plain --compress -p 64:2:8 -o x
err_has 'model.layers.0.*does not fit 64:2:8: panel 0.*\[convert.does_not_fit\]'
t "convert dense to dense" 2 convert d --dense -o x; err_has '\[convert.not_compressed\]'
for form in sparse-24-bitmask sparse-bitmask; do
    t "convert to $form" 0 convert p --to $form -o f-$form --shard-size 20KB; out_has '14 of 14 linear layers'
    t "info of $form" 0 info f-$form; out_has "compressed +$form"
    t "info of $form as JSON" 0 info f-$form --json; json "\$j->{foreign_form} eq '$form'"
    t "verify $form" 0 verify f-$form; quiet_err
    t "run $form" 0 run f-$form --prompt a --max-tokens 2 -q
    t "eval of $form" 0 eval f-$form --text text.txt -q
    t "convert $form to ours" 0 convert f-$form --compress -p 64:2:8 -o c-$form
    name="the same bytes from $form"
    if cmp -s c-$form/model.safetensors p/model.safetensors; then ok; else bad "they differ"; fi
    t "convert $form to dense" 0 convert f-$form --dense -o d-$form
    name="the same dense bytes from $form"
    if cmp -s d-$form/model.safetensors d/model.safetensors; then ok; else bad "they differ"; fi
done
t "prune a bitmask folder" 0 prune f-sparse-24-bitmask -p 64:2:16 -o pf; out_has '64:2:16'
t "convert to 2:4 what does not fit" 5 convert plain --to sparse-24-bitmask -o x
err_has 'model.layers.0.*does not fit 2:4.*row 0.*\[convert.does_not_fit\]'
t "convert to an unknown form" 2 convert p --to marlin-24 -o x; err_has 'sparse-24-bitmask or sparse-bitmask'
t "convert two ways" 2 convert p --to sparse-bitmask --dense -o x; err_has 'or --to FORM'
t "convert --to with a pattern" 2 convert p --to sparse-bitmask -p 2:4 -o x; err_has 'usage.extra_option'
t "convert --to with a rule" 2 convert p --to sparse-bitmask --pattern-for '*=2:4' -o x; err_has 'convert.bad_rule'
# ---- reordered channels ----
t "prune, reordered" 0 prune plain -p 16:2:8 -o pm --permute; quiet_err; out_has 'permutation: [1-9]'
t "info of it" 0 info pm; out_has 'permutation  .*orders, kept score 0\.'
t "verify it" 0 verify pm --strict -q
t "run it" 0 run pm --prompt a -n 3 -q
t "regrouped rows" 0 prune plain -p 16:2:8 -o pr --regroup; t "verify them" 0 verify pr --strict -q
t "run it" 0 run pr --prompt a -n 3 -q
t "joint search" 0 prune plain -p panel:16@0.75 -o pj --search joint; t "verify it" 0 verify pj --strict -q
t "reordered, JSON" 0 prune plain -p 16:2:8 -n --permute --json
json '$j->{permutation}{moved_orders} > 0 && $j->{permutation}{kept_after} > $j->{permutation}{kept_before}'
t "reorder what is compressed" 2 prune pm -p 2:4 -o x --permute; err_has 'permutation.compressed'
t "reorder for nothing" 2 prune plain -p unstructured@0.5 -o x --permute; err_has 'permutation.no_pattern'
t "prune in shards" 0 prune plain -p 64:2:8 -o ps --shard-size 0.05MB
name="shards are there"; if [ -f ps/model-00001-of-00002.safetensors ]; then ok; else bad "$(ls ps)"; fi
t "verify shards" 0 verify ps; out_has '14 compressed tensors'; quiet_err
for size in 5 GB 0B 5gb '5 GB' -5GB 1e3MB 99999999TB .5GB 5.GB 0.1B 1234567890123456KB; do
    t "shard size $size" 2 prune plain -p 2:4 -o x "--shard-size=$size"; err_has 'usage.bad_value'
done
cp -r p damaged
printf '\001' | dd of=damaged/model.safetensors bs=1 seek=60000 conv=notrunc 2>dd.err
t "verify a damaged model" 3 verify damaged; one_line_err
t "eval of a damaged model" 3 eval damaged --text text.txt
head -c 5000 p/model.safetensors >damaged/model.safetensors
t "verify a cut model" 3 verify damaged; err_has 'espalier: error: '
name="no target was left"; if [ -e x ]; then bad "x is there"; else ok; fi

# ---- eval ----
t "eval" 0 eval plain --text text.txt; out_has '^perplexity +[0-9.]+$'; out_has 'context 128, stride 127, prefix 1 \(BOS\)'; quiet_err
t "eval, JSON" 0 eval p --text text.txt --baseline plain --context 32 --stride 16 --json --compute f32
json '$j->{tokens} == 72 && $j->{text_bytes} == 72 && $j->{context} == 32 && $j->{stride} == 16 && $j->{compute} eq "f32"'
json 'abs($j->{perplexity} - exp($j->{nats} / 72)) < 1e-6 * $j->{perplexity} && $j->{mean_kl} > 0 && $j->{baseline_perplexity} > 1'
t "eval against itself" 0 eval plain --text text.txt --baseline plain --json
json 'abs($j->{mean_kl}) < 1e-9 && $j->{top1_agreement} == 1 && $j->{perplexity_ratio} == 1'
t "eval on ref" 0 eval plain --text short.txt --device ref --json; json '$j->{device} eq "ref" && $j->{tokens} == 21'
ref=$(perl -MJSON::PP -e 'print decode_json(<STDIN>)->{nats}' <out)
t "eval on cpu agrees with ref" 0 eval plain --text short.txt --compute f32 --json
json "abs(\$j->{nats} - $ref) < 1e-3"
t "eval without BOS" 0 eval no-bos --text short.txt; out_has 'no BOS; the first token is not scored'
t "eval --max-tokens" 0 eval plain --text text.txt --max-tokens 10 --json; json '$j->{tokens} == 10'
printf '14 the first line\n58\tthe second\n' >documents.txt
printf '14\nmany\n' >bad-documents.txt
t "eval --bootstrap" 0 eval p --text text.txt --baseline plain --documents documents.txt --bootstrap 100 --seed 3
out_has '^intervals +95 %, 100 resamples of 2 documents, seed 3$'; out_has 'mean KL [0-9.]+ to [0-9.]+$'; quiet_err
t "eval --bootstrap, JSON" 0 eval p --text text.txt --baseline plain --documents documents.txt --bootstrap 100 --json
json '@{$j->{parts}} == 2 && $j->{parts}[0]{tokens} == 14 && $j->{parts}[1]{tokens} == 58'
json '$j->{intervals}{mean_nats}{low} <= $j->{mean_nats} && $j->{mean_nats} <= $j->{intervals}{mean_nats}{high}'
json 'abs($j->{parts}[0]{nats} + $j->{parts}[1]{nats} - $j->{nats}) < 1e-6'
t "eval --bootstrap of windows" 0 eval plain --text text.txt --context 32 --bootstrap 50; out_has 'resamples of 3 windows'
t "eval --bootstrap of one window" 2 eval plain --text short.txt --bootstrap 50; err_has '\[eval.one_part\]'
t "eval: documents of another text" 2 eval plain --text short.txt --documents documents.txt; err_has '\[eval.bad_documents\]'
t "eval: documents that are no numbers" 3 eval plain --text text.txt --documents bad-documents.txt
err_has 'bad-documents.txt, line 2: .*\[text.bad_size\]'
t "eval: no documents" 3 eval plain --text text.txt --documents empty.txt; err_has '\[text.bad_size\]'
t "eval: documents of questions" 2 eval plain --multiple-choice questions.jsonl --documents documents.txt
err_has '\[usage.extra_option\]'
t "eval: intervals of questions" 2 eval plain --multiple-choice questions.jsonl --bootstrap 10; err_has '\[usage.extra_option\]'
t "eval of an empty text" 2 eval plain --text empty.txt; err_has '\[eval.no_text\]'
t "eval of no file" 3 eval plain --text absent.txt; err_has '\[text.unreadable\]'
t "eval of no text" 3 eval plain --text no-text.bin; err_has '\[text.not_text\]'
t "eval of a folder" 3 eval plain --text plain; err_has '\[text.unreadable\]'
t "eval: another vocabulary" 2 eval plain --text text.txt --baseline vocabulary; err_has '\[eval.vocabulary_differs\]'
t "eval: context too long" 2 eval plain --text text.txt --context 129; err_has '\[eval.bad_context\]'
t "eval: stride too long" 2 eval plain --text text.txt --context 32 --stride 32; err_has '\[eval.bad_stride\]'
t "eval: NaN" 5 eval nan --text text.txt; err_has '\[eval.not_finite\]'
t "eval: kernel forced" 0 eval plain --text short.txt --kernel '*portable*' --json
json '$j->{kernels}[0]{name} =~ /portable/'
t "eval: no such kernel" 4 eval plain --text short.txt --kernel 'zzz*'
name="eval from standard input"
"$program" eval plain --text - --json <text.txt >out 2>err && json '$j->{tokens} == 72'

# ---- run ----
t "run" 0 run plain --prompt hello -n 8; err_has 'prompt 6 tokens.*new 8 tokens.*stopped by limit'; err_has 'decode kernels: matmul_'
t "run is repeatable" 0 run plain --prompt hello -n 20 --temperature 1 --seed 7 --quiet; cp out first; quiet_err
t "run is repeatable, again" 0 run plain --prompt hello -n 20 --temperature 1 --seed 7 --quiet --threads 1
if cmp -s out first; then ok; else bad "the same seed gave another text"; fi
t "run, another seed" 0 run plain --prompt hello -n 20 --temperature 1 --seed 8 --quiet
if cmp -s out first; then bad "another seed gave the same text"; else ok; fi
name="run prints whole UTF-8"
if perl -MEncode -e 'local $/; my $t = <STDIN>; decode("UTF-8", $t, Encode::FB_CROAK); 1' <first 2>err; then ok; else bad "not UTF-8"; fi
t "run, JSON" 0 run plain --prompt hello -n 5 --json; quiet_err
json '$j->{prompt_tokens} == 6 && $j->{new_tokens} == 5 && $j->{stop} eq "limit" && defined $j->{text} && @{$j->{kernels}{decode}} > 0'
t "run until the context is full" 0 run plain --prompt hello -n 1000 --json
json '$j->{stop} eq "context" || $j->{stop} eq "eos"'
t "run --no-special" 0 run plain --prompt hello --no-special -n 1 --json; json '$j->{prompt_tokens} == 5'
t "run: empty prompt with BOS" 0 run plain --prompt '' -n 1 --json; json '$j->{prompt_tokens} == 1'
t "run: empty prompt without BOS" 2 run no-bos --prompt ''; err_has '\[run.empty_prompt\]'
t "run: no new tokens" 0 run plain --prompt hello -n 0 --json; json '$j->{new_tokens} == 0'
t "run: prompt too long" 2 run plain --prompt-file "$source/LICENSE"; err_has "context holds 128.*\[run.prompt_too_long\]"
name="run from standard input"
printf hello | "$program" run plain -n 3 --json >out 2>err && json '$j->{prompt_tokens} == 6'

# ---- bench ----
t "bench of problems" 0 bench matmul/64:2:8/bf16/128x128x1 matmul/dense/f32/64x96x20 -r 3 --rotate 0
out_has '^matmul/64:2:8/bf16/128x128x1'; out_has 'rival +matmul_dense_'; quiet_err
t "bench, JSON lines" 0 bench matmul/2:4/bf16/64x64x4 matmul/4:8/f16/96x80x33/ep:bias+silu plain -r 3 --json --rotate 100000
json '@j == 3 && $j->{kind} eq "problem" && $j->{median_us} > 0 && $j->{min_us} <= $j->{median_us} && %{$j->{rivals}} && $j->{ratio_to_dense} > 0 && $j->{weight_copies} > 1 && length $j->{commit} && $j->{compute} ne "auto"'
json '$j[2]{kind} eq "model" && $j[2]{prefill_tokens_per_s} > 0 && $j[2]{decode_tokens_per_s} > 0'
json '$j->{ratio_spread}{least} <= $j->{ratio_to_dense} && $j->{ratio_to_dense} <= $j->{ratio_spread}{most} && $j->{read_gb_per_s} > 0 && $j->{share_of_read_bandwidth} > 0 && length $j->{machine}{processor} && $j->{fastest_dense} =~ /dense/ && $j->{chosen}'
t "bench: patterns together" 0 bench matmul/dense/f32/64x64x20 matmul/2:4/f32/64x64x20 matmul/block:32x32@0.8/f32/64x64x20 matmul/2:4/f32/64x64x21 --rotate 0 -r 3 --json
json '@j == 4 && $j[1]{median_us} > 0 && $j[1]{rivals}{$j[0]{kernel}} == $j[0]{median_us} && $j[2]{rivals}{$j[0]{kernel}} == $j[0]{median_us} && !defined $j[0]{read_gb_per_s}'
t "bench with cold weights" 0 bench matmul/2:4/f32/512x512x256 matmul/2:4/f32/512x512x257 --against none -r 1 --json
json '$j[0]{weight_copies} > 1 && $j[1]{weight_copies} == 1'
t "bench against nobody" 0 bench matmul/2:4/f32/64x64x4 --against none --rotate 0 -r 3 --json
json '!%{$j->{rivals}} && !defined $j->{ratio_to_dense} && !defined $j->{fastest_dense}'
t "bench against named kernels" 0 bench matmul/2:4/f32/64x64x4 --against '*panel*portable,*dense_f32*portable' --rotate 0 -r 3 --json
json 'join(" ", sort keys %{$j->{rivals}}) =~ /^matmul_dense_f32_f32__cpu_portable matmul_panel_f32_f32__cpu_portable/ && $j->{fastest_dense} eq "matmul_dense_f32_f32__cpu_portable"'
t "bench of all kernels" 0 bench matmul/2:4/bf16/64x64x4 --all-kernels --rotate 0 -r 3 --json
json '@j >= 1 && (grep { $_->{chosen} } @j) == 1 && (grep { $_->{kernel} =~ /panel.*portable/ } @j) == 1'
t "bench of a forced kernel" 0 bench matmul/2:4/bf16/64x64x4 --kernel '*portable' --rotate 0 -r 3; out_has '__cpu_portable'; out_has 'interleaved rounds'
t "bench of patterns" 0 bench plain --patterns 2:4,128:2:8 --text text.txt -r 3; out_has '^128:2:8 '; out_has 'was clamped'
no_leftovers
t "bench of patterns, JSON" 0 bench plain --patterns 2:4,64:2:5 --text text.txt -r 3 --json --work kept --memory sparse
json '@j == 3 && $j[0]{pattern} eq "dense" && $j[0]{file_ratio} == 1 && $j[1]{mean_kl} > 0 && $j[2]{linear_ratio} < 0.6'
t "bench kept the folders" 0 verify kept/64-2-5
printf '%s' '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "num_hidden_layers": 2,
 "num_attention_heads": 4, "intermediate_size": 256, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
 "vocab_size": 100}' >config.json && mkdir -p drawn && mv config.json drawn/
t "bench of drawn weights" 0 bench --random-weights drawn -p 64:2:8,dense,2:4 --tokens 20 --new-tokens 3 -r 2 --memory sparse
out_has '^model/drawn/dense/f16/prefill20 .* 0 % +0 % .* dense$'; out_has '^model/drawn/2:4/f16/decode1 .* [89][0-9] % +[89][0-9] % .*%  sparse$'; out_has ' sparse FLOPs +sparse bytes '; quiet_err
t "bench of drawn weights, JSON" 0 bench --random-weights drawn -p 64:2:8 --batch 3 --type bf16 -r 2 --json --memory sparse
json '@j == 4 && $j[0]{problem} eq "model/drawn/dense/bf16/prefill48" && $j[3]{problem} eq "model/drawn/64:2:8/bf16/decode3" && $j[2]{ratio_to_dense} == 1'
json '$j[3]{median_ms} > 0 && $j[3]{least_ms} <= $j[3]{median_ms} && $j[3]{rivals}{espalier_dense} == $j[2]{median_ms} && $j[3]{sparse_flops_share} > 0.8 && $j[3]{is_sparse} && !$j[2]{is_sparse} && $j[3]{resident_bytes} < $j[2]{resident_bytes} && $j[3]{random_weights}'
name="each field has its place in docs/cli.md"
if perl -MJSON::PP -e '
        my ($row) = grep { /^\| `espalier\.bench` of whole models/ } split /\n/, do { local $/; open my $in, "<", $ARGV[0]; <$in> };
        my %fields = map { $_ => 1 } map { keys %{decode_json($_)} } <STDIN>;
        my @absent = grep { !/^(schema|version)$/ && $row !~ /`$_`/ } sort keys %fields;
        print STDERR "absent: @absent\n";
        exit(@absent > 0 || keys %fields < 20)' "$source/docs/cli.md" <out 2>err; then ok; else bad "fields without a word"; fi
name="beside PyTorch's times"; cp out ours
printf '%s\n' '{"model": "drawn/decode3", "type": "bf16", "eager_ms": 3, "graph_ms": 2, "compile_ms": "failed"}' >pytorch
perl "$source/bench/models.pl" join ours pytorch >out 2>err
json '@j == 4 && abs($j[3]{ratio_to_pytorch} * $j[3]{median_ms} - 2) < 1e-9 && $j[3]{rivals}{pytorch_eager} == 3 && !defined $j[3]{rivals}{pytorch_compile} && !defined $j[0]{ratio_to_pytorch}'
t "bench beside a dense model" 0 bench p24 --baseline plain -r 2 --json
json '@j == 4 && $j[1]{pattern} eq "2:4" && !$j[1]{random_weights} && $j[1]{problem} =~ m,^model/p24/2:4/,'
t "bench of drawn texts" 0 bench --random-weights bert -p 2:4 --batch 2 --tokens 8 -r 2; out_has '^model/bert/2:4/f16/2x8 '
t "bench of drawn weights, tuned" 0 bench --random-weights drawn -p 64:2:8 --skip '*.mlp.*' --tune --tokens 20 --new-tokens 3 -r 2; out_has 'mostly dense'
t "bench of what is partly sparse" 0 bench --random-weights drawn -p 2:4 --skip '*attn*' --memory sparse --tokens 20 -r 1
out_has '^model/drawn/2:4/f16/prefill20 .* 4[0-9] % +4[0-9] % .*%  mostly dense$'; out_has '^model/drawn/2:4/f16/decode1 .* 5[0-9] % +4[0-9] % .*%  partly sparse$'
mkdir -p head && sed 's/"vocab_size": 100/"vocab_size": 400/' drawn/config.json >head/config.json
t "bench of a model with a large head" 0 bench --random-weights head -p 64:2:8 --memory sparse --tokens 20 -r 1 --json
json '$j[1]{sparse_flops_share} > 0.8 && $j[1]{sparse_bytes_share} < 0.8 && $j[1]{sparse_bytes_share} > 0.5 && !$j[1]{is_sparse}'
name="the tables of models name rows alike"; cp out lines; perl "$source/bench/models.pl" table lines >out 2>err
out_has '^\| head prefill20 \| f16 \| 64:2:8 \|.*\| partly sparse \|$'; out_has '^\| head prefill20 \| f16 \| dense \|.*\| dense \|$'; quiet_err
t "bench: skip without drawn weights" 2 bench plain --baseline plain --skip '*'; err_has 'skip is for --random-weights'
t "bench: drawn and a model" 2 bench plain --random-weights drawn; err_has 'takes no MODEL'
t "bench: a pattern and nothing to draw" 2 bench plain -p 2:4; err_has 'takes no MODEL'
t "bench: nothing to draw" 3 bench --random-weights absent -p 2:4; err_has 'checkpoint.no_config'
t "bench: drawn texts too long" 2 bench --random-weights drawn --tokens 65; err_has 'bench.context_too_short'
t "bench: wrong problem" 2 bench matmul/2:4/bf16/0x64x4
t "bench: too many tokens" 2 bench plain --prompt-tokens 128 --new-tokens 1; err_has 'bench.context_too_short'
t "bench of nothing" 3 bench absent

# ---- several prompts ----
printf 'hello\nA small\nx\n' >prompts.txt
t "three prompts" 0 run plain --prompts prompts.txt -n 4 --compute f32; out_has '^-- 3 \(limit\)'; err_has '3 prompts, .* new 12 tokens'
t "three prompts, JSON" 0 run plain --prompts prompts.txt -n 4 --compute f32 --device ref --json
json '@{$j->{texts}} == 3 && $j->{new_tokens} == 12 && $j->{texts}[1]{prompt_tokens} == 8'
t "the second alone" 0 run plain --prompt 'A small' -n 4 --compute f32 --device ref --quiet; cp out alone
t "three prompts on ref" 0 run plain --prompts prompts.txt -n 4 --compute f32 --device ref --quiet
name="the same text as alone"; if perl -0 -e 'open A, "alone"; open B, "out"; $a = <A>; $b = <B>; exit(index($b, "-- 2 (limit)\n$a") < 0)'; then ok; else bad "the texts differ"; fi
t "prompts and a prompt" 2 run plain --prompts prompts.txt --prompt a; err_has '\[usage.extra_option\]'
t "no prompts" 2 run plain --prompts empty.txt; err_has '\[run.no_text\]'
t "prompts for an encoder" 2 run bert --prompts prompts.txt; err_has '\[run.no_decoder\]'

# ---- encoders ----
printf 'a small cat\tthe cat that is small and sits\na big dog\tdogs bark\nred\tthe colour of blood 1234\n' >pairs.tsv
printf 'no tab here\n' >no-pair.tsv
t "info of an encoder" 0 info bert --json; json '$j->{config}{architecture} eq "BertModel"'
t "vectors" 0 run bert --text 'a cat' --text 'A  Cat!'; err_has '2 texts, .* tokens/s; pooling mean, normalised'
t "vectors, one line each" 0 run bert -t 'a cat' -t 'a dog' --quiet; quiet_err
name="two lines of 64 numbers"; if [ "$(awk 'NF == 64' out | wc -l)" = 2 ]; then ok; else bad "other lines"; fi
t "vectors, JSON" 0 run bert -t 'a cat' --json
json '@{$j->{texts}[0]{embedding}} == 64 && $j->{texts}[0]{text} eq "a cat" && $j->{normalized} && $j->{tokens} == 6 && $j->{cut_texts} == 0'
json 'my $s = 0; $s += $_ * $_ for @{$j->{texts}[0]{embedding}}; abs($s - 1) < 1e-5'
t "vectors of a file" 0 run bert --text-file text.txt --json; json '@{$j->{texts}} == 2 && $j->{cut_texts} == 1'
t "vectors without modules" 0 run bert-plain -t 'a cat' --json; json '!$j->{normalized} && $j->{pooling} eq "mean"'
t "vectors on ref" 0 run bert -t 'a cat' --device ref --compute f32 --json; json '$j->{device} eq "ref"'
t "vectors, explained" 0 run bert -t 'a cat' --explain; err_has '^chosen: matmul_'
t "an encoder goes on from no prompt" 2 run bert --prompt a; err_has '\[run.no_decoder\]'
t "a decoder makes no vectors" 2 run plain --text a; err_has '\[run.no_encoder\]'
t "no line of text" 2 run bert --text-file empty.txt; err_has '\[run.no_text\]'
t "a module that is not supported" 4 run bert-dense-module -t a; err_has 'Dense.*\[config.unsupported_module\]'
t "an encoder predicts no text" 2 eval bert --text text.txt; err_has '\[session.no_decoder\]'
t "retrieval" 0 eval bert --retrieval pairs.tsv; out_has '^recall@1 +[01]\.'; out_has '^MRR +[01]\.'; quiet_err
t "retrieval against itself" 0 eval bert --retrieval pairs.tsv --baseline bert --json
json '$j->{pairs} == 3 && abs($j->{mean_cosine} - 1) < 1e-5 && $j->{mrr} == $j->{baseline_mrr} && $j->{recall_10} == 1'
t "retrieval by a decoder" 2 eval plain --retrieval pairs.tsv; err_has '\[run.no_encoder\]'
t "retrieval without pairs" 3 eval bert --retrieval no-pair.tsv; err_has ':1: .*\[text.no_pair\]'
t "retrieval of nothing" 2 eval bert --retrieval empty.txt; err_has '\[eval.no_text\]'
t "multiple choice" 0 eval plain --multiple-choice questions.jsonl; out_has '^accuracy +[01]\.'; out_has '^by bytes +[01]\.'; quiet_err
t "multiple choice against itself" 0 eval plain --multiple-choice questions.jsonl --baseline plain --json
json '$j->{questions} == 2 && $j->{choices} == 5 && $j->{agreement} == 1 && $j->{accuracy} == $j->{baseline_accuracy}'
t "multiple choice by an encoder" 2 eval bert --multiple-choice questions.jsonl; err_has '\[run.no_decoder\]'
t "no question" 2 eval plain --multiple-choice empty.txt; err_has '\[eval.no_text\]'
while IFS='|' read -r name line; do
    printf '{"context": "a", "choices": ["b", "c"], "answer": 0}\n%s\n' "$line" >bad.jsonl
    t "multiple choice: $name" 3 eval plain --multiple-choice bad.jsonl; err_has 'bad.jsonl:2: .*\[text.bad_question\]'; quiet_out
done <<'END'
no JSON|{"context": "a"
no object|["a"]
no context|{"choices": ["b", "c"], "answer": 0}
one choice|{"context": "a", "choices": ["b"], "answer": 0}
an empty choice|{"context": "a", "choices": ["b", ""], "answer": 0}
a choice that is a number|{"context": "a", "choices": ["b", 3], "answer": 0}
no answer|{"context": "a", "choices": ["b", "c"]}
an answer beyond|{"context": "a", "choices": ["b", "c"], "answer": 2}
an answer that is a text|{"context": "a", "choices": ["b", "c"], "answer": "0"}
a key twice|{"context": "a", "context": "a", "choices": ["b", "c"], "answer": 0}
END
t "prune an encoder" 0 prune bert -p 2:4 -o b24 -q; t "verify it" 0 verify b24 --strict -q
name="modules go along"; if [ -s b24/1_Pooling/config.json ]; then ok; else bad "1_Pooling is missing"; fi
t "vectors of the pruned one" 0 run b24 -t 'a cat' --json; json '$j->{sparse_layers} == 12'
t "retrieval against dense" 0 eval b24 --retrieval pairs.tsv --baseline bert --json; json '$j->{mean_cosine} < 1 && $j->{mean_cosine} > 0'
t "prune it again in place" 0 prune bert -p 64:2:8 -o b24 --force -q
t "back to dense" 0 convert b24 --dense -o bdense -q; t "vectors of that" 0 run bdense -t 'a cat' -q --compute f32; cp out dense.txt
t "vectors of the compressed form" 0 run b24 -t 'a cat' -q --compute f32 --memory sparse
name="both forms give the same vector"; if paste dense.txt out | awk '{ n = NF / 2; for (i = 1; i <= n; i++) { d = $i - $(i + n); if (d * d > 1e-10) bad = 1 } } END { exit(bad || n != 64) }'; then ok; else bad "the vectors differ"; fi
t "bench an encoder" 0 bench bert -r 2 --json
json '$j->{texts} == 85 && $j->{prompt_tokens} == 24 && $j->{batch_tokens_per_s} > 0 && $j->{single_tokens_per_s} > 0'
t "bench an encoder's patterns" 0 bench bert --patterns 2:4 -r 2; out_has '^2:4 +batch|^2:4 +both'; out_has 'single tok/s'
t "bench: texts too long" 2 bench bert --prompt-tokens 25 -r 2; err_has '\[bench.context_too_short\]'

# ---- how a kernel is chosen ----
p=matmul/unstructured@0.02/f32/256x256x64 # so dense that no sparse kernel should win
t "kernels: runs dense" 0 kernels $p; out_has ' chosen \(runs dense\)$'; out_has '^it runs dense: [0-9.]+ us predicted; the fastest sparse one, matmul_csr_'
t "kernels --explain" 0 kernels $p --explain; out_has '^kernel +predicted us +measured us +verdict'; out_has '^chosen: matmul_dense_.*\(runs dense\): '
t "kernels, runs dense, JSON" 0 kernels $p --json
json '$j->{runs_dense} && $j->{why} =~ /predicted/ && (grep { $_->{can_run} && $_->{runs_dense} && $_->{predicted_us} > 0 && !defined $_->{measured_us} } @{$j->{kernels}}) > 0'
t "kernels --require-sparse" 4 kernels $p --require-sparse; err_has 'dense is faster: matmul_dense_.* takes [0-9.]+ us, the fastest sparse one, matmul_csr_.* us \(predicted\).*\[plan.dense_is_faster\]'; out_lacks ' chosen'
t "kernels --require-sparse where sparse wins" 0 kernels matmul/64:2:16/f32/1024x1024x1 --require-sparse; out_has ' chosen$'
t "bench --require-sparse" 4 bench $p --require-sparse -r 1; err_has '\[plan.dense_is_faster\]'
t "bench of what runs dense" 0 bench $p -r 1; out_has "^a plan runs $p/c:f32 dense, by matmul_dense_"
t "bench --explain" 0 bench matmul/2:4/f32/64x64x4 -r 1 --rotate 0 --explain; out_has '^chosen: matmul_'
t "bench --explain, JSON" 0 bench matmul/2:4/f32/64x64x4 -r 1 --rotate 0 --explain --json; json '@{$j->{explain}{candidates}} > 5'
t "run --explain" 0 run p24 --prompt hello -n 2 --explain; err_has '^espalier: kernels at 6 tokens'; err_has '^espalier: kernels at 1 tokens'; err_has '^chosen: matmul_'
t "run --explain, JSON" 0 run p24 --prompt hello -n 2 --explain --json
json '(grep { $_->{layers} > 0 && @{$_->{candidates}} > 5 && length $_->{chosen} } @{$j->{explain}}) == @{$j->{explain}} && @{$j->{explain}} > 4'
# Of 15 products four in the last layer, and the head, are of one token in a prefill, too.
json 'my %n; $_->{problem} =~ m,/\d+x\d+x(\d+), and $n{$1} += $_->{layers} for @{$j->{explain}}; $n{6} == 10 && $n{1} == 5 + 15'
t "eval --explain" 0 eval p24 --text short.txt --explain; out_has '^chosen: matmul_'
t "eval --explain, JSON" 0 eval p24 --text short.txt --explain --json; json '@{$j->{explain}} > 2'
t "bench of a model --explain" 0 bench p24 -r 1 --explain; err_has '^chosen: matmul_'
t "bench of a model --explain, JSON" 0 bench p24 -r 1 --explain --json; json '@{$j->{explain}} > 2 && defined $j->{layers_run_dense}{prefill}'
t "bench of whole models --explain" 0 bench --random-weights drawn -p 2:4 --tokens 20 -r 1 --explain
err_has '^model/drawn/2:4/f16/prefill20 at 20 tokens$'; err_has '^model/drawn/dense/f16/decode1 at 1 tokens$'; err_has '^chosen: matmul_'; out_lacks '^chosen'
t "bench of whole models --explain, JSON" 0 bench --random-weights drawn -p 2:4 --tokens 20 -r 1 --explain --json
json '@j == 4 && (grep { my $j = $_; @{$j->{explain}} > 2 && (grep { @{$_->{candidates}} > 0 && length $_->{chosen} && $_->{problem} =~ m,^matmul/(dense|\Q$j->{pattern}\E)/, } @{$j->{explain}}) == @{$j->{explain}} } @j) == 4'
json '$j[0]{explain}[0]{problem} =~ m,x20(/|$), && $j[2]{explain}[0]{problem} =~ m,x1(/|$),'
t "bench of whole models, not explained" 0 bench --random-weights drawn -r 1 --json; json '!exists $j->{explain}'
t "run of prompts --explain" 0 run p24 --prompts prompts.txt -n 2 --explain; err_has '^chosen: matmul_'
t "run of prompts --explain, JSON" 0 run p24 --prompts prompts.txt -n 2 --explain --json
json '@{$j->{explain}} > 2 && (grep { $_->{problem} =~ m,x3(/|$), } @{$j->{explain}}) == @{$j->{explain}}'
t "retrieval --explain, JSON" 0 eval bert --retrieval pairs.tsv --explain --json; json '@{$j->{explain}} > 2 && @{$j->{explain}[0]{candidates}} > 0'
t "multiple choice --explain, JSON" 0 eval p24 --multiple-choice questions.jsonl --explain --json; json '@{$j->{explain}} > 2 && @{$j->{explain}[0]{candidates}} > 0'
t "memory: unknown" 2 run p24 --prompt hello --memory three; err_has 'one of one, sparse, two'
t "memory sparse" 0 eval p24 --text short.txt --memory sparse --json; json '$j->{memory} eq "sparse" && $j->{sparse_layers} == 12 && $j->{dense_form_layers} == 0 && $j->{two_form_layers} == 0'

# ---- memory of the device ----
while read -r line; do
    t "memory of: $line" 0 $line --json
    json '(grep { $_->{device_bytes}{weights} == $_->{resident_bytes} && $_->{device_bytes}{weights} > 0 && $_->{device_bytes}{activations} > 0 } @j) == @j'
done <<'END'
run plain --prompt hello -n 2
run plain --prompts prompts.txt -n 2
run bert --text a
eval plain --text short.txt
eval plain --multiple-choice questions.jsonl
eval bert --retrieval pairs.tsv
bench plain -r 1
bench plain --patterns 2:4 -r 1
bench --random-weights drawn -p 2:4 -r 1
END
t "memory of a sequence" 0 bench --random-weights drawn -r 1 --json; one=$(perl -MJSON::PP -e 'print decode_json(scalar <STDIN>)->{device_bytes}{activations}' <out)
t "memory of three" 0 bench --random-weights drawn --batch 3 -r 1 --json; json "\$j->{device_bytes}{activations} > 2 * $one"
t "memory in the table" 0 bench --random-weights drawn -r 1; out_has ' resident +activations '

# ---- measured times ----
tuning=$work/cache/espalier/tuning
t "tune a problem" 0 tune matmul/2:4/bf16/64x64x4/a:f32 -r 1 --rotate 0; out_has '^fastest: matmul_'; out_has '^1 problems measured on cpu \| '; out_has "^kept in $tuning$"; quiet_err
name="the tuning file is there"; if grep -q '^time [0-9]* matmul_dense_bf16_f32__cpu_' "$tuning"; then ok; else bad "no such line"; fi
t "what was measured is used" 0 kernels matmul/2:4/bf16/64x64x4/a:f32 --explain; out_has '^chosen: .* us measured at 4 tokens'
t "nearby, too" 0 kernels matmul/2:4/bf16/64x64x16/a:f32 --json; json '$j->{why} =~ /measured at 4 tokens/ && (grep { ($_->{measured_tokens} // 0) == 4 } @{$j->{kernels}}) > 1'
t "not too far" 0 kernels matmul/2:4/bf16/64x64x17/a:f32 --json; json '$j->{why} =~ /predicted/'
t "not for another thread count" 0 kernels matmul/2:4/bf16/64x64x4/a:f32 --json --threads 3; json '$j->{why} =~ /predicted/'
name="not for another instruction set"
ESPALIER_CPU=portable "$program" kernels matmul/2:4/bf16/64x64x4/a:f32 --json >out 2>err; json '$j->{why} =~ /predicted/'
name="ESPALIER_TUNING empty: none"
ESPALIER_TUNING='' "$program" kernels matmul/2:4/bf16/64x64x4/a:f32 --json >out 2>err; json '$j->{why} =~ /predicted/'
t "tune, JSON" 0 tune matmul/2:4/f32/32x32x2 matmul/dense/f32/32x32x2 -r 1 --rotate 0 --json
json '@j == 2 && $j->{problem} =~ m{^matmul/2:4/f32/32x32x2/c:f32$} && (grep { $_->{median_us} > 0 && $_->{error_over_bound} <= 1 && !defined $_->{refused} } @{$j->{kernels}}) == @{$j->{kernels}} && $j->{sparse_us} > 0 && $j->{dense_us} > 0 && $j->{identity} =~ /threads/'
t "tune a model" 0 tune p24 --tokens 1,6 -r 1 --rotate 0; out_has 'problems measured'
t "a tuned model runs" 0 run p24 --prompt hello -n 3 --explain; err_has 'us measured at 6 tokens'
for tokens in '' 0 1, ,1 1,x -1 1,,2 99999999999; do
    t "tune: tokens '$tokens'" 2 tune p24 "--tokens=$tokens"; err_has 'usage.bad_value'
done
t "tune: wrong problem" 2 tune matmul/2:4/f32/0x4x4
t "tune of nothing" 3 tune absent
t "tune: too wide to be checked" 4 tune matmul/2:4/f32/1x1000000x1 -r 1; err_has '\[tune.too_wide\]'

# A table in which dense takes FACTOR of its time, made by another writer of the same format.
forge() {
    perl -e '
        my ($factor, $file) = @ARGV;
        open(my $in, "<", $file) or die; my @lines = <$in>; close $in; pop @lines;
        for (@lines) { s/^time (\d+) (matmul_dense)/"time " . (1 + int($1 * $factor)) . " $2"/e; }
        my $body = join("", @lines);
        my @table = map { my $c = $_; $c = $c & 1 ? ($c >> 1) ^ 0x82f63b78 : $c >> 1 for 1 .. 8; $c } 0 .. 255;
        my $crc = 0xffffffff;
        $crc = ($crc >> 8) ^ $table[($crc ^ $_) & 255] for unpack("C*", $body);
        printf "%send %d %08x\n", $body, scalar(grep { /^problem/ } @lines), $crc ^ 0xffffffff;' "$1" "$2"
}
forge 1000 "$tuning" >slow-dense
forge 0.001 "$tuning" >fast-dense
ESPALIER_TUNING=$work/fast-dense
export ESPALIER_TUNING
t "dense measured faster" 0 run p24 --prompt hello -n 3; err_has 'decode: 12 of 12 sparse layers run dense: that is faster at 1 tokens \(measured\)'
err_has 'memory one: of 12 sparse layers 0 are held sparse, 12 dense, 0 in both forms'
t "dense measured faster, JSON" 0 run p24 --prompt hello -n 3 --json; json '$j->{layers_run_dense}{decode} == 12 && $j->{dense_form_layers} == 12'
t "but sparse is what is held" 0 run p24 --prompt hello -n 3 --memory sparse; err_has '12 of 12 sparse layers run sparse, though dense is faster at 1 tokens \(measured\); --memory two'
t "and sparse is required" 4 run p24 --prompt hello -n 3 --require-sparse; err_has 'model.layers.0.*dense is faster.*\(measured\).*\[plan.dense_is_faster\]'; quiet_out
ESPALIER_TUNING=$work/slow-dense
t "sparse measured faster" 0 run p24 --prompt hello -n 3 --require-sparse; err_has '12 are held sparse, 0 dense'
# Sparse wins one token, dense six: with memory for two, each runs where it wins.
perl -pe '$n = $1 if m{^problem \d+ \S+?/\d+x\d+x(\d+)/}; s/^time \d+ (matmul_dense)/time 1 $1/ if $n == 6' \
    slow-dense >mixed
forge 1 mixed >mixed-sealed
ESPALIER_TUNING=$work/mixed-sealed
t "two forms" 0 run p24 --prompt hello -n 3 --memory two --json
json '$j->{memory} eq "two" && $j->{two_form_layers} == 12 && $j->{layers_run_dense}{prefill} == 8 && $j->{layers_run_dense}{decode} == 0'
two=$(perl -MJSON::PP -e 'print decode_json(<STDIN>)->{resident_bytes}' <out)
t "one form: decoding counts" 0 run p24 --prompt hello -n 3 --json
json "\$j->{dense_form_layers} == 0 && \$j->{resident_bytes} < $two && \$j->{layers_run_dense}{prefill} == 0"
t "one form, and a word about it" 0 run p24 --prompt hello -n 3; err_has 'prefill: 8 of 12 sparse layers run sparse, though dense is faster at 6 tokens'
t "required sparse fails in the prefill" 4 run p24 --prompt hello -n 3 --require-sparse; err_has 'x6/.*\[plan.dense_is_faster\]'

# Files that cannot be used: one warning, no harm, and never replaced unless they were ours.
use="kernels matmul/2:4/f32/32x32x2 --json"
unusable() { # CODE FILE
    ESPALIER_TUNING=$work/$2
    # shellcheck disable=SC2086
    t "$2: ignored" 0 $use; json '$j->{why} =~ /predicted/'; one_line_err
    err_has "warning: .*$2.*ignored: remove it or name another by ESPALIER_TUNING \[$1\]"
    # shellcheck disable=SC2086
    t "$2: quiet" 0 $use --quiet; quiet_err
}
ESPALIER_TUNING=$work/whole
"$program" tune matmul/2:4/f32/32x32x2 -r 1 --rotate 0 -q >/dev/null
sed 's/^espalier-tuning 1/espalier-tuning 2/' whole >newer
sed 's/c:f32/c:f16/' whole >forged
forge 1 forged >bad-line
head -c 200 whole >cut
tr '0' '1' <whole >changed
mkdir folder-tuning
unusable tuning.newer_version newer
unusable tuning.damaged cut
unusable tuning.damaged changed
unusable tuning.bad_line bad-line
unusable tuning.not_tuning_file text.txt
unusable tuning.not_tuning_file empty.txt
unusable tuning.not_tuning_file folder-tuning
if mkfifo fifo 2>/dev/null; then unusable tuning.not_tuning_file fifo; fi
for file in newer text.txt empty.txt folder-tuning; do
    ESPALIER_TUNING=$work/$file
    t "$file is not replaced" 3 tune matmul/2:4/f32/32x32x2 -r 1 --rotate 0 -q; err_has 'it is not replaced.*\[tuning\.'
done
ESPALIER_TUNING=$work/cut
t "a damaged table is replaced" 0 tune matmul/2:4/f32/32x32x2 -r 1 --rotate 0 -q
# shellcheck disable=SC2086
t "and is right then" 0 $use; json '$j->{why} =~ /measured at 2 tokens/'; quiet_err
ESPALIER_TUNING=/proc/nowhere/tuning
t "no place for the file" 1 tune matmul/2:4/f32/32x32x2 -r 1 -q; err_has '\[tuning.system\]'
ESPALIER_TUNING=
t "no file wanted" 1 tune matmul/2:4/f32/32x32x2 -r 1 -q; err_has '\[tuning.no_place\]'
# Several tuners of one file: none loses what another measured.
ESPALIER_TUNING=$work/shared/by/many
for n in 1 2 3 4 5 6 7 8; do
    "$program" tune matmul/dense/f32/8x${n}x1 matmul/dense/f32/8x${n}x2 matmul/dense/f32/8x${n}x3 \
        matmul/dense/f32/8x${n}x4 matmul/dense/f32/8x${n}x5 matmul/dense/f32/8x${n}x6 \
        -r 1 --rotate 0 -q >"tuned.$n" 2>&1 &
done
wait
name="concurrent tuners"
if [ "$(grep -c '^problem ' "$ESPALIER_TUNING")" = 48 ]; then ok; else bad "$(grep -c '^problem ' "$ESPALIER_TUNING") of 48 problems are there"; fi
name="no temporary files are left"
if [ "$(find "$work/shared/by" -type f | wc -l)" = 2 ]; then ok; else bad "$(ls "$work/shared/by")"; fi
unset ESPALIER_TUNING
rm -rf "$work/cache"

# ---- environment ----
name="ESPALIER_THREADS"
ESPALIER_THREADS=1 "$program" eval plain --text short.txt --json >out 2>err; json '$j->{threads} == 1'
name="an option wins over ESPALIER_THREADS"
ESPALIER_THREADS=1 "$program" eval plain --text short.txt --json --threads 2 >out 2>err; json '$j->{threads} == 2'
name="wrong ESPALIER_THREADS"
ESPALIER_THREADS=many "$program" devices >out 2>err
if [ $? = 2 ]; then ok; else bad "exit code"; fi
err_has "ESPALIER_THREADS 'many'"
name="ESPALIER_CPU"
ESPALIER_CPU=portable "$program" eval plain --text short.txt --json >out 2>err; json '$j->{kernels}[0]{name} =~ /portable|openblas/'
name="wrong ESPALIER_CPU"
ESPALIER_CPU=mmx "$program" devices >out 2>err
if [ $? = 2 ]; then ok; else bad "exit code"; fi

# ---- models of images ----
. "$source/tests/cli/images.sh"

# ---- GPUs that cannot be used ----
. "$source/tests/cli/devices.sh"

# ---- smaller dense models ----
t "shrink what holds NaN" 5 shrink nan -o never --hidden 0.25; err_has 'nan: model.layers.1.mlp.up_proj.weight: entry .0, 0. is -?nan.*\[prune.not_finite\]'
t "shrink" 0 shrink plain --hidden 0.5 -o shrunk; out_has '^hidden features: 176 -> 88 in each of 2 layers$'; out_has 'of the squares of the weights'
t "it is a model" 0 verify shrunk --strict -q
name="its config.json says so"; if grep -q '"intermediate_size": 88' shrunk/config.json && grep -q '"rms_norm_eps": 1e-05' shrunk/config.json; then ok; else bad "config.json"; fi
t "it runs" 0 run shrunk --prompt a -n 3 -q
t "shrink, calibrated" 0 shrink plain --hidden 0.5 --multiple 1 -o shrunk -f --calibrate words.txt --json
json '$j->{by} eq "outputs" && $j->{hidden_after} == 88 && $j->{mean_loss} > 0 && $j->{mean_loss} < 1 && $j->{stored_bytes} < $j->{source_bytes}'
t "prune what was shrunk" 0 prune shrunk -p 2:4 -o shrunk-24 -q
t "shrink a folder that is there" 1 shrink plain --hidden 0.5 -o shrunk; err_has '\[checkpoint\.'
t "shrink by nothing" 2 shrink plain -o never; err_has 'of 176 hidden features 176 stay.*\[shrink.nothing\]'
t "shrink by everything" 2 shrink plain --hidden 1 -o never; err_has '\[shrink.bad_options\]'
t "shrink heads without a head_dim" 4 shrink bert --heads 0.5 -o never; err_has 'hidden_size over their number.*\[shrink.no_heads\]'
t "shrink without a folder" 2 shrink plain --hidden 0.5; err_has '\[usage.missing_option\]'
name="nothing was written"; if [ -e never ]; then bad "never exists"; else ok; fi

# ---- turned models ----
t "turn" 0 turn plain -c words.txt -p 64:2:8 -o turned; out_has "^the stream's 64 channels, as 10 layers read them$"; out_has 'no longer the embedding'
t "it is a model, too" 0 verify turned --strict -q
name="its head is its own"; if grep -q '"tie_word_embeddings": false' turned/config.json && grep -q '"rms_norm_eps": 1e-05' turned/config.json; then ok; else bad "config.json"; fi
t "it computes the same" 0 eval turned --text short.txt --baseline plain --json; json '$j->{mean_kl} < 1e-3 && $j->{mean_kl} >= 0'
t "turn again, in JSON" 0 turn turned -c words.txt -o turned-2 --json
json '$j->{untied} == 0 && $j->{stored_bytes} == $j->{source_bytes} && $j->{channels} == 64 && $j->{readers} == 10'
t "prune what was turned" 0 prune turned -p 64:2:8 -c words.txt -o turned-pruned -q
t "turn a folder that is there" 1 turn plain -c words.txt -o turned; err_has '\[checkpoint\.'
t "turn an encoder" 4 turn bert -c words.txt -o never; err_has 'Llama and Qwen2.*\[turn.no_rms_norm\]'
t "turn without a text" 2 turn plain -o never; err_has '\[usage.missing_option\]'
t "turn for no pattern" 2 turn plain -c words.txt -p 4:2 -o never; err_has '\[pattern\.'
name="nothing was written by turn"; if [ -e never ]; then bad "never exists"; else ok; fi

# ---- advice and recipes ----
. "$source/tests/cli/advise.sh"

# ---- output that cannot be written, interrupts ----
if [ -w /dev/full ]; then
    for arguments in --help --version "info plain" "info plain --json" kernels "prune plain -p 2:4 -n" "run plain --prompt a -n 3" "verify plain"; do
        name="full disk: $arguments"
        # shellcheck disable=SC2086
        "$program" $arguments >/dev/full 2>err
        code=$?
        : >out
        if [ "$code" = 1 ]; then ok; else bad "exit code $code, expected 1"; fi
    done
else
    skipped=$((skipped + 1))
    echo "not run cli: full disk: there is no /dev/full"
fi
# A pipe that nobody reads any more.
for arguments in kernels "kernels --json" "run plain --prompt a -n 100000" "verify plain"; do
    name="closed pipe: $arguments"
    # shellcheck disable=SC2086
    perl -e 'pipe(my $r, my $w); close $r; open(STDOUT, ">&", $w); exec @ARGV' \
        "$program" $arguments 2>err
    code=$?
    : >out
    if [ "$code" = 1 ]; then ok; else bad "exit code $code, expected 1"; fi
done
name="closed standard output"
"$program" kernels >&- 2>err
code=$?
if [ "$code" = 1 ]; then ok; else bad "exit code $code, expected 1"; fi

# A signal ends long work with 130 and leaves nothing half written.
for signal in INT TERM; do
    name="SIG$signal while generating"
    # The shell makes background jobs ignore SIGINT; perl puts the default back.
    perl -e '$SIG{INT} = "DEFAULT"; exec @ARGV' \
        "$program" bench plain -r 10000 >out 2>err &
    child=$!
    sleep 0.5
    kill -s $signal $child
    wait $child
    code=$?
    if [ "$code" = 130 ]; then ok; else bad "exit code $code, expected 130"; fi
    err_has '\[cancelled\]'
    name="SIG$signal while pruning into patterns"
    perl -e '$SIG{INT} = "DEFAULT"; exec @ARGV' \
        "$program" bench plain --patterns 2:4,64:2:8 -r 10000 >out 2>err &
    child=$!
    sleep 0.7
    kill -s $signal $child
    wait $child
    code=$?
    if [ "$code" = 130 ]; then ok; else bad "exit code $code, expected 130"; fi
    no_leftovers
done

. "$source/tests/cli/scripts.sh"

echo "cli: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]

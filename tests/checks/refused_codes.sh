#!/bin/sh
# docs/refused-inputs.md against the sources: every error code of a family of input faults that src/ uses
# has a row, and every row is a code in use that a test names. Usage: refused_codes.sh SOURCE_DIR
set -eu
cd "$1"
page=docs/refused-inputs.md

# Families on the page: the part of a code before the dot.
families='safetensors|file|json|index|sharded|checkpoint|foreign|pattern|sparse|config|model|tokenizer|tuning|preprocessor|images?|vision|permutation|device'
# Strings of the same shape that are no codes: file names, keys of tokenizer.json, names of tensors.
no_code='\.(h|json|safetensors|txt|md|weight|merges|vocab|embed_tokens|continuing_subword_prefix|max_input_chars_per_word)$'
# Faults of the operating system, sizes and inner faults that no test can bring about.
untested='file.read_failed file.create_failed file.sync_failed file.rename_failed file.no_exchange
file.no_disk_facts sharded.too_many_tensors model.operation_failed'

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
find src cli/image_file.c cli/image_list.c cli/image_set.c cli/run_images.c -name '*.[ch]' -exec grep -hoE "\"($families)\.[a-z0-9_]+\"" {} + | tr -d '"' |
    grep -vE "$no_code" | sort -u >"$work/used"
grep -oE "^\| \`($families)\.[a-z0-9_]+\`" "$page" | tr -d '|` ' | sort >"$work/rows"
find tests -name '*.c' -o -name '*.h' -o -name '*.sh' -o -name '*.txt' -o -name '*.expected' |
    grep -v checks/refused_codes.sh | xargs cat >"$work/tests"

passed=0 failed=0
bad() { echo "FAIL refused_codes: $*"; failed=$((failed + 1)); }

for code in $(cat "$work/used"); do
    if grep -qx "$code" "$work/rows"; then
        passed=$((passed + 1))
    else
        bad "$code is used in src/ and has no row in $page"
    fi
done
for code in $(uniq -d "$work/rows"); do
    bad "$code has two rows in $page"
done
for code in $(uniq "$work/rows"); do
    if ! grep -qx "$code" "$work/used"; then
        bad "$code has a row in $page and is used nowhere in src/"
    elif ! grep -qF "$code" "$work/tests" && ! echo $untested | grep -qwF "$code"; then
        bad "$code is named by no test"
    else
        passed=$((passed + 1))
    fi
done
echo "refused_codes: $passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]

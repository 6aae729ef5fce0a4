#!/bin/sh
# Who may include whom. A room of src/ may include lower rooms, each through its one door header
# (src/ROOM/ROOM.h), and its own files; cli includes only public headers. Usage: includes.sh SOURCE_DIR
set -eu
cd "$1"

# room:layer, lowest first. cpu starts from ref's table, so that pair is allowed besides.
layers="base:0 tensor:1 format:2 op:2 io:3 prune:3 ref:3 cpu:3 cuda:3 plan:4 pipeline:4 nn:5 model:6 assess:7"
allowed_pairs=" cpu>ref "

layer_of() {
    for entry in $layers; do
        [ "${entry%%:*}" = "$1" ] && { echo "${entry##*:}"; return; }
    done
    echo none
}

passed=0 failed=0
bad() { echo "FAIL includes: $*"; failed=$((failed + 1)); }

for file in $(find src -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' | sort); do
    room=$(echo "$file" | cut -d/ -f2)
    mine=$(layer_of "$room")
    before=$failed
    [ "$mine" = none ] && bad "$file: room '$room' has no layer; add it to tests/checks/includes.sh"
    for target in $(sed -n 's/^ *# *include *"\([^"]*\)".*/\1/p' "$file"); do
        other=${target%%/*}
        [ "$other" = "$room" ] && continue
        theirs=$(layer_of "$other")
        if [ "$theirs" = none ]; then
            bad "$file: \"$target\" is in no room"
        elif [ "$target" != "$other/$other.h" ]; then
            bad "$file: \"$target\" is not the door of '$other' ($other/$other.h)"
        elif [ "$theirs" -ge "$mine" ] && ! echo "$allowed_pairs" | grep -q " $room>$other "; then
            bad "$file: '$room' (layer $mine) may not include '$other' (layer $theirs)"
        fi
    done
    [ "$room" != cuda ] && grep -nE '^ *# *include *<cuda' "$file" /dev/null &&
        bad "$file: CUDA headers stay inside src/cuda"
    [ "$failed" = "$before" ] && passed=$((passed + 1))
done

for file in cli/*.[ch] examples/*.c; do
    [ -f "$file" ] || continue
    before=$failed
    for target in $(sed -n 's/^ *# *include *"\([^"]*\)".*/\1/p' "$file"); do
        [ -f "$(dirname "$file")/$target" ] ||
            bad "$file: \"$target\" is not a file beside it; programs use include/espalier only"
    done
    [ "$failed" = "$before" ] && passed=$((passed + 1))
done

for file in include/espalier/*.h; do
    before=$failed
    for target in $(sed -n 's/^ *# *include *[<"]\([^>"]*\)[>"].*/\1/p' "$file"); do
        case $target in
        espalier/* | stdbool.h | stddef.h | stdint.h) ;;
        *) bad "$file: <$target> does not belong in a public header" ;;
        esac
    done
    [ "$failed" = "$before" ] && passed=$((passed + 1))
done
echo "includes: $passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]

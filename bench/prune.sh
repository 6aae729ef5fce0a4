#!/bin/sh
# How fast a checkpoint of several GB is pruned, beside what the disk can do. A JSON line for each
# pattern: `espalier prune --json`'s summary with the times of the whole command, from a source that is in
# the page cache and from one that is not, and the disk's sequential rates in the same minutes.
# Usage: bench/prune.sh PROGRAM RANDOM_CHECKPOINT THREADS [PATTERN...] > results.jsonl
# LAYERS (6: 2.95 GB), WORK (/tmp): environment. Needs three times the checkpoint on the disk.
set -eu
program=$1 maker=$2 threads=$3
shift 3
[ $# -gt 0 ] || set -- 64:2:8
work=$(mktemp -d "${WORK:-/tmp}/espalier-prune-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM

now() { date +%s.%N; }
since() { echo "$(now) $1" | awk '{ printf "%.3f", $1 - $2 }'; }
# Out of the page cache: written back first, then dropped.
drop() {
    sync "$1"
    dd of="$1" oflag=nocache conv=notrunc,fdatasync count=0 2>/dev/null
}

"$maker" "$work/model" "${LAYERS:-6}"
file=$work/model/model.safetensors
bytes=$(wc -c <"$file")
sync

# The disk: as many bytes as the checkpoint has, written and synced, and read past the cache.
start=$(now)
dd if="$file" of="$work/copy" bs=16M conv=fsync 2>/dev/null
write_s=$(since "$start")
drop "$work/copy"
start=$(now)
dd if="$work/copy" of=/dev/null bs=16M iflag=direct 2>/dev/null
read_s=$(since "$start")
rm "$work/copy"

run() { # PATTERN -> seconds; the summary in $work/summary
    rm -rf "$work/out"
    start=$(now)
    "$program" prune "$work/model" -p "$1" -o "$work/out" --threads "$threads" --json -q >"$work/summary"
    since "$start"
}

for pattern in "$@"; do
    cat "$file" >/dev/null
    warm_s=$(run "$pattern")
    drop "$file"
    cold_s=$(run "$pattern")
    tail -n 1 "$work/summary" | perl -MJSON::PP -e '
        my ($pattern, $threads, $bytes, $write_s, $read_s, $warm_s, $cold_s, $commit) = @ARGV;
        my $s = decode_json(<STDIN>);
        my $n = sub { 0 + sprintf "%.4g", $_[0] };
        print JSON::PP->new->canonical->encode({
            schema => "espalier.bench_prune", version => 1, pattern => $pattern,
            threads => 0 + $threads, commit => $commit, checkpoint_bytes => 0 + $bytes,
            written_bytes => $s->{stored_bytes}, pruned_weights => $s->{pruned_weights},
            mask_seconds => $n->($s->{mask_seconds}),
            mask_weights_per_s => $n->($s->{pruned_weights} / $s->{mask_seconds}),
            cached_seconds => 0 + $warm_s, seconds => 0 + $cold_s,
            checkpoint_gb_per_s => $n->(1e-9 * $bytes / $cold_s),
            cached_checkpoint_gb_per_s => $n->(1e-9 * $bytes / $warm_s),
            cached_weights_per_s => $n->($s->{pruned_weights} / $warm_s),
            disk_write_gb_per_s => $n->(1e-9 * $bytes / $write_s),
            disk_read_gb_per_s => $n->(1e-9 * $bytes / $read_s)}), "\n";
        ' "$pattern" "$threads" "$bytes" "$write_s" "$read_s" "$warm_s" "$cold_s" \
        "$("$program" --version | sed 's/.*(\(.*\))/\1/')"
done

# The rest of the independent reader, read_espalier.pl: the listed forms of docs/formats.md, section 6,
# written from that page alone. Returns dense bytes, then the parts' bytes.
use strict;
use warnings;
use integer;

our (%width, %letter);

# ---- section 6: blocks of R x C (csr 1 x 1, rows 1 x in, cols out x 1); $names: list and offsets ----
sub kept_of { my ($s, $n) = @_; no integer; my $k = $n - int($s * $n + 0.5); return $k > 1 ? $k : $n ? 1 : 0; }
sub read_listed { my ($name, $dtype, $out, $in, $s, $R, $C, $shape, $list, $offsets) = @_;
    my ($down, $across, $wide) = (up($out, $R || 1), up($in, $C || 1), $width{$dtype});
    my $places = $list eq 'rows' ? $down : $across;
    my $kept = kept_of($s, $offsets ? $down * $across : $places);
    my ($type, @offset) = ($places <= 65536 ? 'U16' : 'U32');
    my @part = (part("$name.values", $dtype, $shape->($kept)), part("$name.$list", $type, $kept));
    my @place = unpack $letter{ $width{$type} }, $part[1];
    if ($offsets) {
        my $offset_type = $kept < 2**32 ? 'U32' : 'U64';
        push @part, part("$name.$offsets", $offset_type, $down + 1);
        @offset = unpack $letter{ $width{$offset_type} }, $part[2];
        die "$name: offsets\n" if $offset[0] != 0 || $offset[-1] != $kept || grep { $offset[$_] > $offset[$_ + 1] } 0 .. $down - 1;
    }
    my $dense = "\0" x ($out * $in * $wide);
    my ($line, $last) = (0, -1);
    for my $k (0 .. $kept - 1) {
        if ($offsets) { while ($offset[$line + 1] <= $k) { $line++; $last = -1; } }
        die "$name: entry $k: place\n" if $place[$k] <= $last || ($last = $place[$k]) >= $places;
        my ($row, $column) = $list eq 'rows' ? ($place[$k], 0) : ($line * $R, $place[$k] * $C);
        for my $r (0 .. ($R < $out - $row ? $R : $out - $row) - 1) {
            my $count = $C < $in - $column ? $C : $in - $column;
            my $from = $list eq 'columns' && !$offsets ? $r * $kept + $k : ($k * $R + $r) * $C;
            substr($dense, (($row + $r) * $in + $column) * $wide, $count * $wide) = substr $part[0], $from * $wide, $count * $wide;
        }
    }
    return $dense, @part; }

sub read_listed_pattern { my ($name, $pattern, $dtype, $out, $in) = @_;
    my @weight = ($name, $dtype, $out, $in);
    if ($pattern =~ /^unstructured@(.+)$/) { return read_listed(@weight, $1, 1, 1, sub { @_ }, 'columns', 'row_offsets'); }
    if ($pattern =~ /^rows@(.+)$/) { return read_listed(@weight, $1, 1, $in, sub { @_, $in }, 'rows'); }
    if ($pattern =~ /^cols@(.+)$/) { return read_listed(@weight, $1, $out, 1, sub { $out, @_ }, 'columns'); }
    my ($R, $C, $s) = $pattern =~ /^block:(\d+)x(\d+)@(.+)$/ or return;
    return read_listed(@weight, $s, $R, $C, sub { @_, $R, $C }, 'block_columns', 'block_row_offsets'); }

1;

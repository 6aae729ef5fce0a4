#!/usr/bin/perl
# An independent reader of espalier's compressed folders (and of plain dense ones), written from
# docs/formats.md alone, so that the page is known to be enough and the library to agree with it.
#
#   read_espalier.pl [--crc] [--plain] MODEL_DIR [NAME_REGEX]
#
# For each logical tensor, sorted by name:  MD5-of-dense-bytes NAME SHAPE DTYPE PATTERN
# --crc also verifies the crc32c of the stored bytes; --plain leaves PATTERN away, so that a compressed
# folder and its dense export give the same text. Any violation of the page ends it with a message.
use strict;
use warnings;
use integer;
use Digest::MD5 qw(md5_hex);
use JSON::PP;
use FindBin;
require "$FindBin::Bin/read_listed.pl"; # section 6

our %width = (F32 => 4, F16 => 2, BF16 => 2, U8 => 1, U16 => 2, U32 => 4, U64 => 8);
our %letter = (1 => 'C*', 2 => 'v*', 4 => 'V*', 8 => 'Q<*');
my %option = map { $_ => 1 } grep { /^--/ } @ARGV;
my ($folder, $regex) = grep { !/^--/ } @ARGV;
die "usage: read_espalier.pl [--crc] [--plain] MODEL_DIR [NAME_REGEX]\n" if !defined $folder;

sub slurp { my ($path) = @_; open my $f, '<:raw', $path or die "$path: $!\n"; local $/; return <$f>; }
sub bytes_at { my ($f, $at, $count, $what) = @_;
    my $bytes; seek $f, $at, 0; my $got = read $f, $bytes, $count;
    die "$what: cut short\n" if !defined $got || $got != $count; return $bytes; }
sub product { my $p = 1; $p *= $_ for @_; return $p; }
sub up { my ($value, $divisor) = @_; return ($value + $divisor - 1) / $divisor; }

# ---- section 1: the folder ----
my $json = JSON::PP->new->utf8;
my $config = -e "$folder/config.json" ? $json->decode(slurp("$folder/config.json")) : {};
my $quantization = $config->{quantization_config};
die "quant_method is not espalier\n" if $quantization && $quantization->{quant_method} ne 'espalier';
die "unknown format_version\n" if $quantization && $quantization->{format_version} != 1;
my @files = ('model.safetensors');
if (-e "$folder/model.safetensors.index.json") {
    my $map = $json->decode(slurp("$folder/model.safetensors.index.json"))->{weight_map};
    my %seen = map { $_ => 1 } values %$map;
    @files = sort keys %seen;
}
my %stored; # name => file handle, absolute offset, bytes, dtype, shape
for my $file (@files) {
    open my $f, '<:raw', "$folder/$file" or die "$folder/$file: $!\n";
    my $length = unpack 'Q<', bytes_at($f, 0, 8, $file);
    my $header = $json->decode(bytes_at($f, 8, $length, $file));
    delete $header->{__metadata__};
    while (my ($name, $t) = each %$header) {
        my ($begin, $end) = @{ $t->{data_offsets} };
        $stored{$name} = { file => $f, at => 8 + $length + $begin, bytes => $end - $begin,
                           dtype => $t->{dtype}, shape => $t->{shape} };
    }
}
my $tensors = $quantization ? $quantization->{tensors}
    : { map { $_ => { %{ $stored{$_} }, pattern => 'dense' } } keys %stored };

sub part { my ($name, $dtype, @shape) = @_;
    my $t = $stored{$name} or die "$name: missing\n";
    die "$name: is $t->{dtype} [@{$t->{shape}}], expected $dtype [@shape]\n"
        if $t->{dtype} ne $dtype || "@{$t->{shape}}" ne "@shape";
    die "$name: wrong size\n" if $width{$dtype} && $t->{bytes} != $width{$dtype} * product(@shape);
    return bytes_at($t->{file}, $t->{at}, $t->{bytes}, $name); }

# ---- section 8 ----
my @table = map { my $c = $_; $c = $c & 1 ? $c >> 1 ^ 0x82F63B78 : $c >> 1 for 1 .. 8; $c } 0 .. 255;
sub crc32c { my $crc = 0xFFFFFFFF;
    for (@_) { $crc = $crc >> 8 ^ $table[($crc ^ $_) & 255] for unpack 'C*', $_ }
    return sprintf '%08x', $crc ^ 0xFFFFFFFF; }

# ---- section 4: returns dense bytes, then the parts' bytes ----
sub read_panel { my ($name, $dtype, $out, $in, $v, $kept, $has_list) = @_;
    my $quads = $kept / 4;
    my @part = (part("$name.values", $dtype, $out, $kept / 2),
                part("$name.positions", 'U8', $out, up($kept, 8)));
    my ($list, $rows, $panels) = ('', undef, up($out, $v));
    my $type = $in <= 65535 ? 'U16' : 'U32';
    push @part, $list = part("$name.columns", $type, $panels, $kept) if $has_list;
    if ($stored{"$name.rows"}) {
        my $row_type = $out <= 65536 ? 'U16' : 'U32';
        push @part, part("$name.rows", $row_type, $out);
        $rows = [unpack $letter{ $width{$row_type} }, $part[-1]];
        die "$name: rows are no bijection\n" if "@{[sort { $a <=> $b } @$rows]}" ne "@{[0 .. $out - 1]}";
    }
    my ($wide, $unit, @dense, @column) = ($width{$dtype}, $has_list ? $width{$type} : 0);
    for my $i (0 .. $out - 1) {
        if ($i % $v == 0) { # a new panel
            @column = $has_list ? unpack($letter{$unit}, substr $list, $i / $v * $kept * $unit, $kept * $unit)
                                : 0 .. $kept - 1;
            my $none = $has_list ? 2**(8 * $unit) - 1 : -1;
            my %seen;
            for my $c (@column) { die "$name: column $c twice\n" if $c != $none && $seen{$c}++;
                die "$name: column $c\n" if $has_list && $c != $none && $c >= $in; }
        }
        my @value = unpack $letter{$wide}, substr $part[0], $i * $kept / 2 * $wide, $kept / 2 * $wide;
        my @pair = unpack 'C*', substr $part[1], $i * up($kept, 8), up($kept, 8);
        my @row = (0) x $in;
        for my $g (0 .. $quads - 1) {
            my $nibble = $pair[$g / 2] >> 4 * ($g & 1) & 15;
            my ($p, $q) = ($nibble & 3, $nibble >> 2);
            die "$name: row $i, group $g: positions\n" if $p >= $q;
            for my $entry ([$p, $value[2 * $g]], [$q, $value[2 * $g + 1]]) {
                next if $entry->[1] == 0;
                my $c = $column[4 * $g + $entry->[0]];
                die "$name: row $i, group $g: weight on padding\n" if $c >= $in;
                $row[$c] = $entry->[1];
            }
        }
        $dense[$rows ? $rows->[$i] : $i] = pack $letter{$wide}, @row;
    }
    return join('', @dense), @part; }

# ---- section 5 ----
sub read_nm { my ($name, $dtype, $out, $in, $keep, $group) = @_;
    my ($wide, $bits, $rest, @dense) = ($width{$dtype}, 0, $in % $group);
    $bits++ while 2**$bits < $group;
    my $kept = $keep * ($in / $group) + ($rest < $keep ? $rest : $keep);
    my $line = up($kept * $bits, 8);
    my @part = (part("$name.values", $dtype, $out, $kept), part("$name.positions", 'U8', $out, $line));
    for my $i (0 .. $out - 1) {
        my @value = unpack $letter{$wide}, substr $part[0], $i * $kept * $wide, $kept * $wide;
        my $stream = unpack 'b*', substr $part[1], $i * $line, $line; # lowest bit of a byte first
        my @row = (0) x $in;
        for my $k (0 .. $kept - 1) { # only the last group may hold fewer than keep entries
            my $c = $k / $keep * $group + unpack('V', pack 'b32', substr $stream, $k * $bits, $bits);
            die "$name: row $i, entry $k: column $c\n" if $c >= $in;
            $row[$c] = $value[$k];
        }
        push @dense, pack $letter{$wide}, @row;
    }
    return join('', @dense), @part; }

for my $name (sort grep { !defined $regex || /$regex/ } keys %$tensors) {
    my ($pattern, $dtype, @shape) = (@{ $tensors->{$name} }{qw(pattern dtype)}, @{ $tensors->{$name}{shape} });
    my ($out, $in, @read) = @shape;
    my $panel = sub { my ($v, $kept) = @_; read_panel($name, $dtype, $out, $in, $v < $out ? $v : $out || 1, $kept, 1) };
    if ($pattern eq 'dense') { my $bytes = part($name, $dtype, @shape); @read = ($bytes, $bytes); }
    elsif ($pattern eq '2:4') { @read = read_panel($name, $dtype, $out, $in, $out || 1, 4 * up($in, 4), 0); }
    elsif ($pattern =~ /^(\d+):2:(\d+)$/) { @read = $panel->($1, 4 * up($in, $2)); }
    elsif ($pattern =~ /^panel:(\d+)@(.+)$/) {
        my ($v, $quads) = ($1, do { no integer; int((1 - $2) * $in / 2 + 0.5) });
        @read = $panel->($v, 4 * ($quads > 1 ? $quads : 1)); }
    elsif ($pattern =~ /^(\d+):(\d+)$/) { @read = read_nm($name, $dtype, $out, $in, $1, $2); }
    elsif (@read = read_listed_pattern($name, $pattern, $dtype, $out, $in)) { }
    else { die "$name: pattern $pattern has no stored form\n"; }
    my ($dense, @parts) = @read;
    die "$name: crc32c\n" if $option{'--crc'} && $quantization && crc32c(@parts) ne $tensors->{$name}{crc32c};
    printf "%s %s %s %s%s\n", md5_hex($dense), $name, join('x', @shape), $dtype, $option{'--plain'} ? '' : " $pattern";
}

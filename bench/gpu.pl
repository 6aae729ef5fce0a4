#!/usr/bin/perl
# Tables and a figure from JSON lines of `espalier bench --device cuda:N`.
# Usage: bench/gpu.pl table results.jsonl     Markdown: gain over the best dense product, with aims and bounds
#        bench/gpu.pl figure results.jsonl    SVG: gain against sparsity, for the shapes of @shapes
#        bench/gpu.pl types results.jsonl     Markdown: bf16 beside f16, of the products that are there in both
# A bound is what the chip could do: tensor cores at the rate that a loop of nothing but products reaches
# (H200, random data, at its power limit), the L2 at what gathered loads draw, or loads of bands of blocks,
# memory at the copy bandwidth of the same rounds.
use strict;
use warnings;
use JSON::PP;
use List::Util qw(max min);
use POSIX qw(ceil);

my $dense_tflops = 889;    # wgmma, f16, both operands in shared memory
my $sparse_tflops = 1543;  # wgmma.sp, dense-equivalent in the columns that are kept
my $l2_bytes_per_clock = 64;   # of one multiprocessor, gathered 16 bytes at a time
my $tensor_macs_per_clock = 64 * 256 * 32 / 128;  # dense-equivalent, of one multiprocessor
my $l2_bytes_per_us = 7.5e6;   # of all multiprocessors, each with columns of its own
my $spread_products = 1.2;     # of a spread V:2:5 over those of 2:4: 96 places for 80 columns
my @shapes = ('4096x4096x4096', '11008x4096x4096', '3072x768x12608');

# Share of the columns that a band of 128 rows has, of random blocks in 4096x4096: docs/kernels-gpu.md, "Blocks".
my %band_columns = ('block:64x64@0.8' => 0.32, 'block:64x64@0.9' => 0.167, 'block:32x32@0.9' => 0.29,
    'block:16x16@0.9' => 0.48, 'block:128x128@0.8' => 0.2);

# ---- aims: f16, gain over the best dense product, "must stretch" ----

my @aim_shapes = qw(4096x4096x4096 11008x4096x4096 4096x11008x4096 3072x768x12608 4096x4096x512);
my %aims = (
    '2:4'      => ['1.40 1.55', '1.40 1.55', '1.40 1.55', '1.30 1.45', '1.20 1.25'],
    '64:2:5'   => ['1.00 1.10', '1.00 1.10', '1.00 1.05', '1.00 1.00', '1.00 1.05'],
    '128:2:5'  => ['1.38 1.60', '1.38 1.60', '1.35 1.60', '1.25 1.45', '1.10 1.25'],
    '256:2:5'  => ['1.48 1.80', '1.45 1.80', '1.45 1.80', '1.38 1.60', '1.10 1.30'],
    '64:2:8'   => ['1.65 2.00', '1.75 2.00', '1.30 1.90', '1.40 1.60', '1.20 1.40'],
    '128:2:8'  => ['2.20 2.60', '2.20 2.60', '2.00 2.50', '1.70 2.00', '1.35 1.60'],
    '256:2:8'  => ['2.20 2.90', '2.25 2.90', '2.20 2.80', '1.90 2.20', '1.35 1.60'],
    '64:2:16'  => ['2.80 3.20', '3.00 3.40', '2.40 3.20', '2.00 2.20', '1.50 1.80'],
    '128:2:16' => ['3.70 4.50', '4.00 4.80', '3.70 4.50', '2.40 2.60', '1.70 2.00'],
    '256:2:16' => ['3.70 5.00', '4.00 5.20', '4.00 5.00', '2.60 2.80', '1.70 2.00'],
    'block:64x64@0.8' => ['2.50 3.20'],
    'block:64x64@0.9' => ['4.00 5.50'],
    'block:32x32@0.9' => ['2.50 3.80']);
# Of 11008x4096 at 1 and 8 tokens; at 16 tokens a tenth less.
my %few_aims = ('2:4' => '1.40 1.60', '64:2:5' => '1.65 1.90', '64:2:8' => '2.50 3.00',
    '128:2:8' => '2.50 3.05', '64:2:16' => '3.50 4.80');
my $copy_aim = 0.8;    # of the speed of a copy, at few tokens, of these
my %streams = map { $_ => 1 } qw(dense 2:4 64:2:5 64:2:8);
my $bf16_aim = 0.94;   # of the speed of f16

# (must, stretch), or nothing.
sub aims_of {
    my ($r) = @_;
    my $few = $r->{sizes} =~ /^11008x4096x(1|8|16)$/;
    my ($column) = grep { $aim_shapes[$_] eq $r->{sizes} } 0 .. $#aim_shapes;
    my $aims = $few ? $few_aims{$r->{pattern}} : defined $column ? $aims{$r->{pattern}}[$column] : undef;
    return () if !defined $aims || $r->{type} ne 'f16';
    my $less = $few && $r->{tokens} == 16 ? 0.9 : 1;
    return map { $less * $_ } split / /, $aims;
}

sub verdict {
    my ($reached, $must, $stretch) = @_;
    return $reached < $must ? 'missed' : defined $stretch && $reached >= $stretch ? 'stretch met' : 'met';
}

# ---- reading ----

# Share of the columns that a panel keeps; V, or 0 where nothing is gathered.
sub kept_of {
    my ($pattern) = @_;
    return (1, 0) if $pattern eq '2:4';
    return (4 / $2, $1) if $pattern =~ /^(\d+):2:(\d+)$/;
    return (1, -1);    # dense, or not of panels
}

# Of columns as 2:4 multiplies them: what is gathered, or all of them and more.
sub multiplied {
    my ($r) = @_;
    return is_spread($r) ? $spread_products : (kept_of($r->{pattern}))[0];
}

sub is_spread {
    my ($r) = @_;
    return $r->{kernel} =~ /_spread_/;
}

sub sparsity_of {
    my ($pattern) = @_;
    my ($kept, $v) = kept_of($pattern);
    return $v < 0 ? undef : 1 - $kept / 2;
}

sub read_lines {
    my ($file) = @_;
    my @rows;
    open my $in, '<', $file or die "$file: $!\n";
    while (<$in>) {
        my $r = decode_json($_);
        next if !defined $r->{problem} || (exists $r->{chosen} && !$r->{chosen});
        my (undef, $pattern, $type, $sizes) = split m{/}, $r->{problem};
        @$r{qw(pattern type sizes)} = ($pattern, $type, $sizes);
        @$r{qw(out in tokens)} = split /x/, $sizes;
        my @dense = sort { $r->{rivals}{$a} <=> $r->{rivals}{$b} }
            grep { /^cublas|matmul_dense/ && defined $r->{rivals}{$_} } keys %{$r->{rivals}};
        next if !@dense;
        @$r{qw(dense dense_us)} = ($dense[0], $r->{rivals}{$dense[0]});
        my @lt = sort { $a <=> $b } map { $r->{rivals}{$_} // () }
            grep { /^cusparselt/ } keys %{$r->{rivals}};
        $r->{cusparselt_us} = $lt[0];
        $r->{over_cusparselt} = min(map { $r->{rival_ratios}{$_} // () } grep { /^cusparselt/ }
            keys %{$r->{rival_ratios} // {}});
        my $spread = $r->{ratio_spread};
        $r->{low} = $spread ? $spread->{low_quartile} : $r->{ratio_min};
        $r->{high} = $spread ? $spread->{high_quartile} : $r->{ratio_max};
        push @rows, $r;
    }
    return @rows;
}

# ---- bounds, in microseconds ----

sub tensor_us {
    my ($r) = @_;
    my $products = 2e-6 * $r->{out} * $r->{in} * $r->{tokens};
    return $products / $dense_tflops if $r->{pattern} eq 'dense';
    return $products * (1 - $1) / $dense_tflops if $r->{pattern} =~ /^block:\d+x\d+@([\d.]+)$/;
    return $products * multiplied($r) / $sparse_tflops;
}

# Clocks of the L2 over clocks of the tensor cores for a step of 64 kept columns of a tile, rows x tokens:
# 64 rows of X, gathered for the rows of one panel, and 4608 bytes of weights for each 64 rows.
sub l2_share {
    my ($v) = @_;
    my ($rows, $tokens) = $v <= 64 ? (64, 512) : $v <= 128 ? (128, 256) : (256, 128);
    my $bytes = 64 * 2 * $tokens + 4608 * $rows / 64;
    return $bytes / $l2_bytes_per_clock / ($rows * $tokens * 64 / $tensor_macs_per_clock);
}

sub l2_us {
    my ($r) = @_;
    my (undef, $v) = kept_of($r->{pattern});
    return blocks_l2_us($r) if $r->{pattern} =~ /^block/;
    return $v > 0 && !is_spread($r) ? tensor_us($r) * l2_share($v) : 0;
}

# X of each band of rows, and the band's blocks once for each tile of tokens.
sub blocks_l2_us {
    my ($r) = @_;
    my ($pruned) = $r->{pattern} =~ /@([\d.]+)$/;
    my ($tile) = $r->{kernel} =~ /_128x(\d+)$/ or return 0;    # few tokens: from memory
    my $columns = $r->{in} * ($band_columns{$r->{pattern}} // 1 - $pruned);
    my $x = ceil($r->{out} / 128) * $columns * $r->{tokens} * 2;
    my $blocks = $r->{out} * $r->{in} * (1 - $pruned) * 2 * ceil($r->{tokens} / $tile);
    return ($x + $blocks) / $l2_bytes_per_us;
}

# Everything once, at the copy bandwidth; the weight as its files hold it.
sub memory_us {
    my ($r) = @_;
    return 0 if !$r->{copy_gb_per_s};
    my ($kept, $v) = kept_of($r->{pattern});
    my $weight = $r->{stream_bytes}
        // $r->{out} * $r->{in} * $kept * 1.125 + ($v > 0 ? $r->{out} / $v * $r->{in} * $kept * 2 : 0);
    return ($weight + 2 * ($r->{in} + $r->{out}) * $r->{tokens}) / $r->{copy_gb_per_s} / 1e3;
}

sub bound_of {
    my ($r) = @_;
    my %us = (tensor => tensor_us($r), L2 => l2_us($r), memory => memory_us($r));
    my ($name) = sort { $us{$b} <=> $us{$a} } keys %us;
    return ($name, $us{$name});
}

# ---- tables ----

sub table {
    my @rows = @_;
    my $title = '';
    for my $r (@rows) {
        my $here = "$r->{sizes}, $r->{type}";
        if ($here ne $title) {
            my $device = $r->{machine} ? $r->{machine}{processor} : $r->{device};
            print "\n### $here\n\n$device, $r->{rounds} rounds, revision $r->{commit}",
                $r->{copy_gb_per_s} ? sprintf(', copy %.0f GB/s', $r->{copy_gb_per_s}) : '', "\n\n";
            print "| pattern | us | best dense | us | gain (quartiles) | must, stretch | of a copy | cuSPARSELt 2:4",
                " us | dense-equivalent Tflop/s | bound | of it | MHz |\n", '|---' x 12, "|\n";
            $title = $here;
        }
        my ($bound, $us) = bound_of($r);
        (my $dense = $r->{dense}) =~ s/^matmul_dense_//;
        printf "| %s | %.1f | %s | %.1f | %.2f (%.2f-%.2f) | %s | %s | %s | %.0f | %s %.1f us | %.0f %% | %s |\n",
            $r->{pattern}, $r->{median_us}, $dense, $r->{dense_us}, $r->{ratio_to_dense}, $r->{low},
            $r->{high}, gain_aim($r), copy_share($r), beside_cusparselt($r), $r->{dense_equivalent_tflops},
            $bound, $us, 100 * $us / $r->{median_us}, $r->{sm_clock_mhz} ? sprintf('%.0f', $r->{sm_clock_mhz}) : '';
    }
}

sub gain_aim {
    my ($r) = @_;
    my ($must, $stretch) = aims_of($r) or return '';
    return sprintf '%.2f, %.2f: %s', $must, $stretch, verdict($r->{ratio_to_dense}, $must, $stretch);
}

sub copy_share {
    my ($r) = @_;
    my $share = $r->{share_of_copy_bandwidth};
    return '' if $r->{tokens} > 16 || !defined $share;
    my $aimed = $r->{type} eq 'f16' && $streams{$r->{pattern}};
    return sprintf('%.0f %%', 100 * $share) . ($aimed ? ': ' . verdict($share, $copy_aim) : '');
}

# 2:4 is to be as fast at least.
sub beside_cusparselt {
    my ($r) = @_;
    return not_run($r) if !defined $r->{cusparselt_us};
    my $aimed = $r->{pattern} eq '2:4' && defined $r->{over_cusparselt};
    return sprintf('%.1f', $r->{cusparselt_us}) .
        ($aimed ? sprintf(', gain %.2f: %s', $r->{over_cusparselt}, verdict($r->{over_cusparselt}, 1)) : '');
}

sub not_run {
    my ($r) = @_;
    my ($why) = values %{$r->{rivals_not_run} // {}};
    return $why // 'not run';
}

# ---- bf16 beside f16 ----

sub types {
    my %f16 = map { ("$_->{pattern} $_->{sizes}" => $_) } grep { $_->{type} eq 'f16' } @_;
    print "| pattern, shape | f16 us | bf16 us | f16 / bf16 | gains over dense | at least $bf16_aim |\n",
        '|---' x 6, "|\n";
    for my $r (grep { $_->{type} eq 'bf16' } @_) {
        my $f16 = $f16{"$r->{pattern} $r->{sizes}"} or next;
        my $ratio = $f16->{median_us} / $r->{median_us};
        printf "| %s, %s | %.1f | %.1f | %.2f | %.2f, %.2f | %s |\n", $r->{pattern}, $r->{sizes},
            $f16->{median_us}, $r->{median_us}, $ratio, $f16->{ratio_to_dense}, $r->{ratio_to_dense},
            verdict($ratio, $bf16_aim);
    }
}

# ---- the figure ----

my ($panel_width, $panel_height, $left, $top, $gap) = (330, 330, 64, 66, 62);
my @ticks = (0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8);
my ($lowest, $highest) = (0.45, 9);
my %series = (64 => ['#c2410c', 'V = 64'], 128 => ['#1d4ed8', 'V = 128'], 256 => ['#15803d', 'V = 256']);

sub x_at {
    my ($panel, $sparsity) = @_;
    my $place = log(1 / (1 - $sparsity)) / log(2);    # 1 .. 3
    return $left + $panel * ($panel_width + $gap) + ($place - 0.75) / 2.5 * $panel_width;
}

sub y_at {
    my ($ratio) = @_;
    my $share = log($ratio / $lowest) / log($highest / $lowest);
    return $top + (1 - $share) * $panel_height;
}

sub text {
    my ($x, $y, $anchor, $size, $words, $more) = @_;
    $more //= '';
    printf qq{<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%d" %s>%s</text>\n}, $x, $y, $anchor, $size,
        $more, $words;
}

sub line {
    my ($x1, $y1, $x2, $y2, $style) = @_;
    printf qq{<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" %s/>\n}, $x1, $y1, $x2, $y2, $style;
}

sub frame {
    my ($panel, $title) = @_;
    my ($x, $right) = ($left + $panel * ($panel_width + $gap), 0);
    $right = $x + $panel_width;
    printf qq{<rect x="%.1f" y="%.1f" width="%d" height="%d" fill="#ffffff" stroke="#9ca3af"/>\n}, $x, $top,
        $panel_width, $panel_height;
    for my $tick (@ticks) {
        my $y = y_at($tick);
        line($x, $y, $right, $y, $tick == 1 ? 'stroke="#111827" stroke-width="1.6"' : 'stroke="#e5e7eb"');
        text($x - 7, $y + 4, 'end', 13, $tick);
    }
    for my $sparsity (0.5, 0.6, 0.75, 0.875) {
        my $at = x_at($panel, $sparsity);
        line($at, $top, $at, $top + $panel_height, 'stroke="#f3f4f6"');
        text($at, $top + $panel_height + 19, 'middle', 13, 100 * $sparsity . ' %');
    }
    text($x + $panel_width / 2, $top - 10, 'middle', 15, $title, 'font-weight="bold"');
    text($right - 6, y_at(1) + 15, 'end', 12, 'dense = 1', 'fill="#111827"');
}

sub path {
    my ($points, $style) = @_;
    printf qq{<polyline points="%s" fill="none" %s/>\n},
        join(' ', map { sprintf '%.1f,%.1f', @$_ } @$points), $style;
}

# Gain if the products took as long as the bound: dense as it was measured beside them.
sub bound_lines {
    my ($panel, @rows) = @_;
    my %tensor;
    for my $r (@rows) {
        my $best = \$tensor{sparsity_of($r->{pattern})};
        $$best = max($$best // 0, $r->{dense_us} / max(tensor_us($r), memory_us($r)));
    }
    path([map { [x_at($panel, $_), y_at(min($highest, $tensor{$_}))] } sort { $a <=> $b } keys %tensor],
        'stroke="#6b7280" stroke-width="1.5" stroke-dasharray="7 4"');
    for my $v (64, 128, 256) {
        my @of = grep { (kept_of($_->{pattern}))[1] == $v } @rows;
        my @at = map { [x_at($panel, sparsity_of($_->{pattern})),
            y_at(min($highest, $_->{dense_us} / max(l2_us($_), tensor_us($_), memory_us($_))))] }
            sort { sparsity_of($a->{pattern}) <=> sparsity_of($b->{pattern}) } @of;
        path(\@at, qq{stroke="$series{$v}[0]" stroke-width="1.2" stroke-dasharray="2 4"}) if @at > 1;
    }
}

sub marks {
    my ($panel, $colour, @rows) = @_;
    my @at = map { [x_at($panel, sparsity_of($_->{pattern})), y_at($_->{ratio_to_dense}), $_] }
        sort { sparsity_of($a->{pattern}) <=> sparsity_of($b->{pattern}) } @rows;
    path([map { [@$_[0, 1]] } @at], qq{stroke="$colour" stroke-width="2.2"}) if @at > 1;
    for my $mark (@at) {
        my ($x, $y, $r) = @$mark;
        line($x, y_at($r->{low}), $x, y_at($r->{high}), qq{stroke="$colour" stroke-width="1.2"});
        printf qq{<circle cx="%.1f" cy="%.1f" r="4.2" fill="%s"/>\n}, $x, $y, $colour;
    }
}

sub cusparselt {
    my ($panel, @rows) = @_;
    my ($r) = grep { defined $_->{cusparselt_us} && $_->{pattern} eq '2:4' } @rows;
    return if !$r;
    my ($x, $y) = (x_at($panel, 0.5), y_at($r->{dense_us} / $r->{cusparselt_us}));
    printf qq{<path d="M%.1f %.1f l6 6 l-6 6 l-6 -6 z" fill="#ffffff" stroke="#111827" stroke-width="1.6"/>\n},
        $x, $y - 6;
}

sub legend {
    my ($y, $ran) = @_;
    my @entries = (['line', '#7c3aed', '2:4'], (map { ['line', @{$series{$_}}] } 64, 128, 256),
        ['dash', '#6b7280', 'tensor cores and memory'], ['dots', '#6b7280', 'L2 at 64 B/clock, by V']);
    push @entries, ['mark', '#111827', $ran ? 'cuSPARSELt 2:4' : 'cuSPARSELt: not run'];
    my $x = $left;
    for my $entry (@entries) {
        my ($kind, $colour, $name) = @$entry;
        my $style = $kind eq 'dash' ? 'stroke-dasharray="7 4"' : $kind eq 'dots' ? 'stroke-dasharray="2 4"' : '';
        if ($kind eq 'mark') {
            printf qq{<path d="M%.1f %.1f l6 6 l-6 6 l-6 -6 z" fill="#ffffff" stroke="%s" stroke-width="1.6"/>\n},
                $x + 13, $y - 10, $colour;
        } else {
            line($x, $y - 4, $x + 26, $y - 4, qq{stroke="$colour" stroke-width="2.2" $style});
        }
        printf qq{<circle cx="%.1f" cy="%.1f" r="4.2" fill="%s"/>\n}, $x + 13, $y - 4, $colour
            if $kind eq 'line';
        text($x + 32, $y, 'start', 13, $name);
        $x += 46 + 7.4 * length $name;
    }
}

sub figure {
    my @rows = grep { defined sparsity_of($_->{pattern}) } @_;
    my $one = $rows[0] or die "no product of panels in the file\n";
    my $device = $one->{machine} ? (split /,/, $one->{machine}{processor})[0] : $one->{device};
    my $width = $left + @shapes * ($panel_width + $gap) - 20;
    my $height = $top + $panel_height + 88;
    print qq{<svg xmlns="http://www.w3.org/2000/svg" width="$width" height="$height" },
        qq{viewBox="0 0 $width $height" font-family="Helvetica, Arial, sans-serif" fill="#111827">\n},
        qq{<rect width="$width" height="$height" fill="#fafafa"/>\n};
    text($left, 26, 'start', 16, "Speed over the best dense product, by sparsity ($device, $one->{type})",
        'font-weight="bold"');
    my $ran = 0;
    for my $panel (0 .. $#shapes) {
        my @here = grep { $_->{sizes} eq $shapes[$panel] && $_->{type} eq $one->{type} } @rows;
        (my $title = $shapes[$panel]) =~ s/x/ x /g;
        frame($panel, $title);
        next if !@here;
        bound_lines($panel, @here);
        marks($panel, '#7c3aed', grep { $_->{pattern} eq '2:4' } @here);
        for my $v (64, 128, 256) {
            marks($panel, $series{$v}[0], grep { (kept_of($_->{pattern}))[1] == $v } @here);
        }
        cusparselt($panel, @here);
        $ran ||= grep { defined $_->{cusparselt_us} } @here;
    }
    text($left + (@shapes * ($panel_width + $gap) - $gap) / 2, $top + $panel_height + 42, 'middle', 13,
        'zeros in the weight (out x in x tokens above each part)');
    legend($top + $panel_height + 70, $ran);
    print "</svg>\n";
}

my %ways = (table => \&table, figure => \&figure, types => \&types);
my ($what, $file) = @ARGV;
die "usage: bench/gpu.pl table|figure|types results.jsonl\n" if !defined $file || !$ways{$what};
$ways{$what}->(read_lines($file));

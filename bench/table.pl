#!/usr/bin/perl
# Markdown tables from JSON lines of `espalier bench`. Usage: bench/table.pl results.jsonl
# Per product: median microseconds of the kernel and of the fastest dense kernel, the median of the
# rounds' ratios with quartiles, what share of the memory's read bandwidth it reaches, and the target.
use strict;
use warnings;
use JSON::PP;

# [pattern, weights, compute, least tokens, most tokens, least ratio]
my @targets = (
    ['2:4', 'f32', 'f32', 128, 512, 1.6],
    ['64:2:8', 'f32', 'f32', 128, 512, 3],
    ['64:2:16', 'f32', 'f32', 128, 512, 5.5],
    ['64:2:8', 'bf16', 'bf16', 128, 512, 1.6],
    ['64:2:16', 'bf16', 'bf16', 128, 512, 3],
    ['64:2:8', 'bf16', '*', 1, 1, 2.8],
    ['block:32x32@0.8', 'f32', 'f32', 512, 512, 4],
);
my $least_share = 0.8; # of the read bandwidth: one token, bf16 weights

sub target_of {
    my ($pattern, $type, $compute, $tokens) = @_;
    for my $t (@targets) {
        return $t->[5]
            if $pattern eq $t->[0] && $type eq $t->[1] && ($t->[2] eq '*' || $compute eq $t->[2])
            && $tokens >= $t->[3] && $tokens <= $t->[4];
    }
    return undef;
}

my ($group, $machine) = ('', '');
while (<>) {
    my $r = decode_json($_);
    next if $r->{kind} ne 'problem' || !$r->{chosen};
    my (undef, $pattern, $type, $sizes) = split m{/}, $r->{problem};
    my ($out, $in, $tokens) = split /x/, $sizes;
    my $m = $r->{machine};
    my $where = "$m->{processor}, $r->{threads} threads, $r->{rounds} rounds, revision $r->{commit}; "
        . "OpenBLAS: " . ($m->{openblas} // 'none') . "; oneDNN: " . ($m->{onednn} // 'none');
    print "\n$where\n" if $where ne $machine;
    $machine = $where;
    my $title = "${out}x$in, $type weights, compute $r->{compute}";
    if ($title ne $group) {
        print "\n### $title\n\n| tokens | pattern | kernel | us | fastest dense | us | gain (quartiles)",
            " | target | of reading |\n|---|---|---|---|---|---|---|---|---|\n";
        $group = $title;
    }
    my ($ours, $rival) = map { s/^matmul_//r } $r->{kernel}, $r->{fastest_dense};
    my $dense_us = $r->{rivals}{$r->{fastest_dense}} // $r->{median_us};
    my $target = target_of($pattern, $type, $r->{compute}, $tokens);
    my $met = !defined $target ? '' : sprintf '%.1f: %s', $target,
        $r->{ratio_to_dense} >= $target ? 'met' : 'missed';
    my $share = $r->{share_of_read_bandwidth};
    my $reading = defined $share ? sprintf('%.0f %% of %.1f GB/s', 100 * $share, $r->{read_gb_per_s}) : '';
    $reading .= sprintf ' (%.0f: %s)', 100 * $least_share, $share >= $least_share ? 'met' : 'missed'
        if defined $share && $tokens == 1 && $type eq 'bf16' && $pattern ne 'dense';
    printf "| %d | %s | %s | %.0f | %s | %.0f | %.2f (%.2f-%.2f) | %s | %s |\n", $tokens, $pattern, $ours,
        $r->{median_us}, $rival, $dense_us, $r->{ratio_to_dense}, $r->{ratio_spread}{low_quartile},
        $r->{ratio_spread}{high_quartile}, $met, $reading;
}

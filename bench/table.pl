#!/usr/bin/perl
# Markdown tables from JSON lines of `espalier bench`. Usage: bench/table.pl results.jsonl
# Per product: median and least microseconds of the kernel and of the fastest dense kernel, and both
# ratios (above 1: faster than dense).
use strict;
use warnings;
use JSON::PP;

my $group = '';
while (<>) {
    my $r = decode_json($_);
    my (undef, $pattern, $type, $sizes) = split m{/}, $r->{problem};
    my ($out, $in, $tokens) = split /x/, $sizes;
    my $title = "${out}x$in, $type weights, compute $r->{compute}, $r->{threads} threads";
    if ($title ne $group) {
        print "\n### $title\n\n| tokens | pattern | kernel | us, median / least | fastest dense",
            " | us, median / least | gain, by medians / by least |\n|---|---|---|---|---|---|---|\n";
        $group = $title;
    }
    my %median = %{$r->{rivals}};
    my %least = %{$r->{rivals_min_us}};
    if ($pattern eq 'dense') {
        $median{$r->{kernel}} = $r->{median_us};
        $least{$r->{kernel}} = $r->{min_us};
    }
    my ($best) = sort { $median{$a} <=> $median{$b} } keys %median;
    my ($least) = sort { $a <=> $b } values %least;
    my ($ours, $rival) = map { s/^matmul_//r } $r->{kernel}, $best;
    printf "| %d | %s | %s | %.0f / %.0f | %s | %.0f / %.0f | %.2f / %.2f |\n", $tokens, $pattern,
        $ours, $r->{median_us}, $r->{min_us}, $rival, $median{$best}, $least,
        $median{$best} / $r->{median_us}, $least / $r->{min_us};
}

#!/usr/bin/perl
# Whole models beside PyTorch, from JSON lines of `espalier bench --random-weights` and of
# bench/pytorch_models.py, in any order.
# Usage: bench/models.pl table FILE...    Markdown: milliseconds and ratios, then where the time goes
#        bench/models.pl join FILE...     espalier's lines with rivals and ratio_to_pytorch put in
use strict;
use warnings;
use JSON::PP;
use List::Util qw(min);

my %our_names = ('sam-vit-h/b1' => 'sam-vit-huge/b1', 'bert-large/b32x512' => 'bert-large/32x512');
my $json = JSON::PP->new->canonical;
my (@rows, %pytorch);

# A time that was measured; what did not run is a text.
sub time_of { my ($value) = @_; return defined $value && $value =~ /^[\d.]+$/ ? $value : undef }

for my $file (@ARGV[1 .. $#ARGV]) {
    open my $in, '<', $file or die "$file: $!\n";
    while (<$in>) {
        my $line = decode_json($_);
        if (exists $line->{eager_ms}) {
            # Older lines do not say their type: it was f16.
            my ($model, $type) = ($our_names{$line->{model}} // $line->{model}, $line->{type} // 'f16');
            $pytorch{"$model/$type"} = $line;
        } elsif (($line->{kind} // '') eq 'whole') {
            my (undef, $model, $pattern, $type, $phase) = split m{/}, $line->{problem};
            @$line{qw(model pattern type phase)} = ($model, $pattern, $type, $phase);
            push @rows, $line;
        }
    }
}

for my $row (@rows) {
    my $rival = $pytorch{"$row->{model}/$row->{phase}/$row->{type}"} or next;
    my @times;
    for my $way (qw(eager graph compile)) {
        my $ms = time_of($rival->{"${way}_ms"}) // next;
        $row->{rivals}{"pytorch_$way"} = $ms;
        push @times, $ms;
    }
    $row->{ratio_to_pytorch} = min(@times) / $row->{median_ms} if @times;
    $row->{pytorch} = min(@times);
}

sub number { my ($format, $value) = @_; return defined $value ? sprintf($format, $value) : '' }

# As `espalier bench` names rows (cli/bench_whole_report.c), by the shares that the line holds.
sub name_row {
    my ($row) = @_;
    my ($flops, $bytes) = @$row{qw(sparse_flops_share sparse_bytes_share)};
    return 'dense' if $row->{sparse_layers} == 0;
    return 'sparse' if $flops >= 0.8 && $bytes >= 0.8;
    return $flops < 0.5 ? 'mostly dense' : 'partly sparse';
}

sub table {
    print "| model | type | pattern | ms | to our dense | to PyTorch | PyTorch's best, ms | sparse FLOPs | sparse bytes | row |\n";
    print "|---|---|---|---|---|---|---|---|---|---|\n";
    for my $r (@rows) {
        printf "| %s %s | %s | %s | %.2f | %.2f | %s | %s | %.0f %% | %.0f %% | %s |\n", $r->{model}, $r->{phase},
            $r->{type}, $r->{pattern}, $r->{median_ms}, $r->{ratio_to_dense}, number('%.2f', $r->{ratio_to_pytorch}),
            number('%.2f', $r->{pytorch}), 100 * $r->{sparse_flops_share}, 100 * $r->{sparse_bytes_share}, name_row($r);
    }
    my @kinds = qw(sparse_products dense_products attention norms others copies idle);
    print "\nShares of the time, percent, by a trace of one run:\n\n";
    print "| model | type | pattern | ", join(' | ', map { s/_/ /r } @kinds), " |\n|---|---|---", '|---' x @kinds, "|\n";
    for my $r (grep { ($_->{time_share}{by} // '') eq 'traced kernels' } @rows) {
        printf "| %s %s | %s | %s | %s |\n", $r->{model}, $r->{phase}, $r->{type}, $r->{pattern},
            join ' | ', map { sprintf '%.0f', 100 * $r->{time_share}{$_} } @kinds;
    }
}

sub join_lines {
    for my $r (@rows) {
        delete @$r{qw(model type phase pytorch)};
        print $json->encode($r), "\n";
    }
}

my $what = $ARGV[0] // '';
if ($what eq 'table') { table() } elsif ($what eq 'join') { join_lines() } else { die "usage: models.pl table|join FILE...\n" }

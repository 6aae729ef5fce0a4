#!/usr/bin/perl
# src/cuda/default_times_*.inc from a tuning file. Usage: tools/default_times.pl TUNING_FILE NAME GPU
# Of each problem the fastest sparse kernel and its time, and the time of the dense product, in microseconds.
use strict;
use warnings;

my ($file, $name, $gpu) = @ARGV;
die "usage: tools/default_times.pl TUNING_FILE NAME GPU >src/cuda/default_times_NAME.inc\n" if !defined $gpu;

my (%families, @order, $problem, $wanted);
open my $in, '<', $file or die "$file: $!\n";
while (<$in>) {
    if (/^device (.*)/) {
        $wanted = index($1, "cuda | $gpu,") == 0;
    } elsif (/^problem \d+ (\S+)/) {
        $problem = undef;
        next if !$wanted || $1 !~ m{^matmul/([^/]+)/f16/(\d+x\d+)x(\d+)/c:f32$};
        my ($key, $tokens) = ("$1/$2", $3);
        push @order, $key if !$families{$key};
        $problem = $families{$key}{$tokens} = {};
    } elsif (/^time (\d+) (\S+)/ && $problem) {
        my ($us, $kernel) = ($1 / 1e3, $2);
        if ($kernel =~ /^matmul_dense_/) {
            $problem->{dense} = $us if !defined $problem->{dense} || $us < $problem->{dense};
        } elsif ($kernel =~ /^matmul_panel_f16_f16__cuda_(\w+)$/
            && (!defined $problem->{us} || $us < $problem->{us})) {
            @$problem{qw(us kernel)} = ($us, $1);
        }
    }
}

my (%number, @names);
for my $key (@order) {
    for my $at (values %{$families{$key}}) {
        $number{$at->{kernel}} = 0 if defined $at->{kernel} && defined $at->{dense};
    }
}
@names = sort keys %number;
@number{@names} = 0 .. $#names;
die "$file: no problem of '$gpu' with a sparse and a dense time\n" if !@names;

print "/* Made by tools/default_times.pl from a tuning file of tools/default_times.sh; not to be edited. */\n",
    "static const char *const ${name}_names[] = {\n", (map { "    \"$_\",\n" } @names), "};\n",
    "static const family ${name}_families[] = {\n";
for my $key (@order) {
    my $of = $families{$key};
    my @points = map { sprintf '{%d, %d, %.2ff, %.2ff}', $_, $number{$of->{$_}{kernel}},
        $of->{$_}{us}, $of->{$_}{dense} }
        grep { defined $of->{$_}{kernel} && defined $of->{$_}{dense} } sort { $a <=> $b } keys %$of;
    next if !@points;
    print "    {\"$key\",\n     {";
    while (my @line = splice @points, 0, 4) {
        print join(', ', @line), @points ? ",\n      " : '';
    }
    print "}},\n";
}
print "};\n";

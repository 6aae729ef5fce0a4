#!/usr/bin/perl
# Lines of bench/accuracy.sh on standard input to a table in Markdown: a row per pattern, for each
# method the held-out loss in nats a token without and with refit.
use strict;
use warnings;

my (%loss, @patterns, $dense);
my @methods = qw(magnitude wanda ria sparsegpt obs);
while (<STDIN>) {
    my ($pattern, $method, $refit, $nats) = split;
    if ($pattern eq 'dense') {
        $dense = $nats;
        next;
    }
    push @patterns, $pattern unless grep { $_ eq $pattern } @patterns;
    $loss{$pattern}{$method}{$refit} = $nats;
}
print "| pattern | ", join(' | ', map { ("$_", "$_, refit") } @methods), " |\n";
print "| --- ", "| ---: " x (2 * @methods), "|\n";
for my $pattern (@patterns) {
    print "| $pattern";
    for my $method (@methods) {
        print " | ", $loss{$pattern}{$method}{$_} // 'not run' for qw(no yes);
    }
    print " |\n";
}
print "\ndense: $dense\n" if defined $dense;

#!/usr/bin/perl
# src/cuda/default_times.inc from tuning files of one or several kinds of GPU.
# Usage: tools/default_times.pl TUNING_FILE... >src/cuda/default_times.inc
# Of each problem the fastest sparse and the fastest dense kernel with their times in microseconds.
# Without a file: an empty table.
use strict;
use warnings;

my (%tables, $families, $problem);    # GPU -> PATTERN/OUTxIN -> tokens -> {sparse, dense} of [us, kernel]
while (<>) {
    if (/^device /) {
        $families = /^device cuda \| ([^,|]+), compute capability/ ? ($tables{$1} //= {}) : undef;
    } elsif (/^problem /) {
        $problem = undef;
        next if !$families || !m{^problem \d+ matmul/([^/]+)/f16/(\d+x\d+)x(\d+)/c:f32$};
        $problem = $families->{"$1/$2"}{$3} = {};
    } elsif (/^time (\d+) (\S+)/ && $problem) {
        my ($us, $kernel) = ($1 / 1e3, $2);
        next if $kernel !~ s{^matmul_([a-z]+)_f16_f16__cuda_(\w+)$}{$1/$2};
        my $kind = $1 eq 'dense' ? 'dense' : 'sparse';
        $problem->{$kind} = [$us, $kernel] if !$problem->{$kind} || $us < $problem->{$kind}[0];
    }
}

# out x in, pattern: as people look for them.
sub order {
    my ($pattern_a, $out_a, $in_a) = split m{[/x]}, $a;
    my ($pattern_b, $out_b, $in_b) = split m{[/x]}, $b;
    return $out_a <=> $out_b || $in_a <=> $in_b || $pattern_a cmp $pattern_b;
}

sub points_of {
    my ($family, $number) = @_;
    return map {
        my ($sparse, $dense) = @{$family->{$_}}{qw(sparse dense)};
        sprintf '{%d, %d, %d, %.2ff, %.2ff}', $_, $number->{$sparse->[1]}, $number->{$dense->[1]}, $sparse->[0],
            $dense->[0];
    } sort { $a <=> $b } keys %$family;
}

print "/* Made by tools/default_times.pl; not to be edited. */\n";
my (@list, $at);
for my $gpu (sort keys %tables) {
    my ($table, %number) = $tables{$gpu};
    for my $family (values %$table) {
        delete @$family{grep { !$family->{$_}{sparse} || !$family->{$_}{dense} } keys %$family};
        $number{$_->{sparse}[1]} = $number{$_->{dense}[1]} = 0 for values %$family;
    }
    delete @$table{grep { !%{$table->{$_}} } keys %$table};
    next if !%$table;
    my ($name, @names) = ('gpu' . ++$at, sort keys %number);
    @number{@names} = 0 .. $#names;
    print "/* $gpu */\nstatic const char *const ${name}_names[] = {\n", (map { "    \"$_\",\n" } @names),
        "    NULL};\nstatic const cuda_times_family ${name}_families[] = {\n";
    for my $key (sort order keys %$table) {
        my @points = points_of($table->{$key}, \%number);
        die "$key: more token counts than a family holds\n" if @points > 16;
        print "    {\"$key\",\n     {";
        while (my @line = splice @points, 0, 4) {
            print join(', ', @line), @points ? ",\n      " : '';
        }
        print "}},\n";
    }
    print "    {NULL, {{0, 0, 0, 0, 0}}}};\n";
    push @list, "    {\"$gpu\", ${name}_names, ${name}_families},\n";
}
print "const cuda_times cuda_shipped[] = {\n", @list, "    {NULL, NULL, NULL}};\n";

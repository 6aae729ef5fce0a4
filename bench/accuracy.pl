#!/usr/bin/perl
# The tables of docs/accuracy.md from the lines of bench/accuracy.sh, and what they say about the
# questions there: differences between two settings on the same documents or images, with 95 %
# intervals of resamples that are the same for both (percentile bootstrap).
# Usage: accuracy.pl RESULTS [OTHERS]
#   OTHERS: results of the same settings by another device or by more tokens; only what both have is
#   then shown, side by side.
use strict;
use warnings;
use JSON::PP;

use constant RESAMPLES => 1000;

my @methods = qw(magnitude wanda ria sparsegpt obs joint);
my @patterns = qw(2:4 64:2:5 128:2:5 64:2:8 128:2:8 panel:64@0.75 panel:128@0.75 64:2:16);
my (%line, %compared, $dense);

sub key {
    my ($pattern, $method, $refit, $permute, $inputs, $seed) = @_;
    return join ' ', $pattern, $method, $refit, $permute // 'no', $inputs // 'pruned', $seed // 0;
}

# Lines of a file by their keys, and the dense model's.
sub read_lines {
    my ($file) = @_;
    my (%of, $whole);
    open my $in, '<', $file or die "$file: $!\n";
    while (<$in>) {
        my $line = decode_json($_);
        my $s = $line->{setting};
        if ($s->{pattern} eq 'dense') {
            $whole //= $line;
            next;
        }
        my $method = $s->{method} . ($s->{search} eq 'auto' ? '' : "+$s->{search}");
        $of{ key($s->{pattern}, $method, @{$s}{qw(refit permute inputs seed)}) } //= $line;
    }
    die "$file: no line of the dense model\n" unless defined $whole;
    return ($whole, %of);
}

die "Usage: accuracy.pl RESULTS [OTHERS]\n" unless @ARGV == 1 || @ARGV == 2;
($dense, %line) = read_lines($ARGV[0]);
my $images = defined $dense->{eval}{images};

sub loss { my ($line) = @_; return $line->{eval}{ $images ? 'cross_entropy' : 'mean_nats' } }

# A number and half of its interval's width, where one was taken: of a loss that of what it is above
# the dense model's, so that what is hard for both is out.
sub with_half {
    my ($number, $interval) = @_;
    return '-' unless defined $number;
    my $half = defined $interval ? ($interval->{high} - $interval->{low}) / 2 : undef;
    return defined $half ? sprintf('%.3f ±%.3f', $number, $half) : sprintf '%.3f', $number;
}

# ---- tables ----

my %orders = (no => '', yes => ', permuted', turned => ', turned and permuted', stream => ', stream turned',
    all => ', stream and values turned, permuted');

# A key in words.
sub named {
    my ($pattern, $method, $refit, $permute) = split / /, $_[0];
    return "$pattern $method" . ($refit eq 'no' ? '' : $refit eq 'yes' ? ', refit' : ', refit in steps')
        . $orders{$permute};
}

sub row { print '| ', join(' | ', @_), " |\n" }

sub heads {
    my ($first, @heads) = @_;
    row($first, @heads);
    row('---', map { '---:' } @heads);
}

# Of a line by another device than the dense model's, which differs by rounding.
sub mark {
    my ($line) = @_;
    my ($own, $other) = map { $_->{eval}{device} // 'cpu' } $line, $dense;
    return $own eq $other ? '' : ' †';
}

# A table of patterns by methods; a cell shows without refit / with refit.
sub table {
    my ($title, $permute, $number) = @_;
    my @shown = grep { my $m = $_; grep { /^\S+ \Q$m\E \S+ $permute pruned 0$/ } keys %line } @methods;
    my @rows;
    for my $pattern (@patterns) {
        my @cells = map {
            my $method = $_;
            join ' / ', map {
                my $line = $line{ key($pattern, $method, $_, $permute) };
                defined $line && $line->{eval} ? $number->($line) . mark($line) : '-'
            } qw(no yes)
        } @shown;
        push @rows, [ $pattern, @cells ] if grep { /\d/ } @cells;
    }
    return unless @rows;
    my $marked = grep { /†/ } map { @$_ } @rows;
    print "\n**$title** (without refit / with refit", $marked ? '; † by a GPU' : '', ")\n\n";
    heads('pattern', @shown);
    row(@$_) for @rows;
}

# ---- side by side ----

sub by_place {
    my %place = map { $patterns[$_] => $_ } 0 .. $#patterns;
    my ($one, $other) = map { (split / /, $_)[0] } $a, $b;
    return ($place{$one} // 99) <=> ($place{$other} // 99) || $a cmp $b;
}

sub side_by_side {
    my ($others, %other) = @_;
    print "\n**The same settings in both files** (a difference below 0 says that the first is lower)\n\n";
    heads('setting', 'seed', 'loss', 'loss', 'difference', 'median error', 'median error');
    row('dense', '', map({ sprintf '%.4f', loss($_) } $dense, $others),
        sprintf('%+.4f', loss($dense) - loss($others)), '', '');
    for my $key (sort by_place grep { $other{$_} && $line{$_}{eval} && $other{$_}{eval} } keys %line) {
        my @pair = ($line{$key}, $other{$key});
        row(named($key), $key =~ /(\d+)$/, map({ sprintf '%.4f', loss($_) } @pair),
            sprintf('%+.4f (%+.4f to %+.4f)', difference(map { [$_] } @pair)),
            map { $_->{calibration} ? sprintf '%.4f', $_->{calibration}{median_error} : '-' } @pair);
    }
}

if (@ARGV == 2) {
    side_by_side(read_lines($ARGV[1]));
    exit;
}

my %ordered = (no => '', yes => ', channels permuted', turned => ', channels permuted, values turned',
    stream => ', residual stream turned', all => ', stream and values turned, channels permuted');
for my $permute (qw(no yes turned stream all)) {
    my $how = $ordered{$permute};
    table('Top-1, percent' . $how, $permute, sub {
        my ($top1, $of) = ($_[0]{eval}{top1}, $_[0]{eval}{intervals}{top1});
        sprintf '%.1f ±%.1f', 100 * $top1, 50 * ($of->{high} - $of->{low});
    }) if $images;
    table('Loss, nats ' . ($images ? 'an image' : 'a token') . $how, $permute, sub {
        with_half(loss($_[0]), $_[0]{eval}{intervals}{excess_nats});
    });
    table('KL to the dense model, nats' . $how, $permute, sub {
        with_half($_[0]{eval}{mean_kl}, $_[0]{eval}{intervals}{mean_kl});
    });
    table('Median error of a layer in its place' . $how, $permute, sub {
        my $c = $_[0]{calibration};
        $c ? sprintf '%.4f', $c->{median_error} : '-';
    });
}
printf "\nDense: loss %.4f%s.\n", loss($dense),
    $images ? sprintf(', top-1 %.1f %%', 100 * $dense->{eval}{top1}) : '';

# ---- equal inputs ----

# Both errors come from the line with refit: before it and after it.
sub equal_inputs {
    my ($pattern, $method) = @_;
    my $line = $line{ key($pattern, $method, 'yes', 'no', 'dense') };
    return $line ? @{ $line->{calibration} }{qw(median_masked_error median_error)} : ();
}

my %named = map { (split / (?=yes no dense)/)[0] =~ /^\S+ (.*)$/ ? ($1 => 1) : () } grep { / dense / } keys %line;
my @with = ((grep { $named{$_} } @methods), sort grep { my $m = $_; !grep { $_ eq $m } @methods } keys %named);
if (@with) {
    print "\n**Median error of a layer on equal inputs** (without refit / with refit)\n\n";
    heads('pattern', @with);
    for my $pattern (@patterns) {
        my @cells = map { [equal_inputs($pattern, $_)] } @with;
        next unless grep { @$_ } @cells;
        row($pattern, map { @$_ ? sprintf '%.4f / %.4f', @$_ : '-' } @cells);
    }
    print "\n**How many times a refit makes that error smaller**\n\n";
    heads('pattern', @with);
    for my $pattern (@patterns) {
        my @cells = map { [equal_inputs($pattern, $_)] } @with;
        next unless grep { @$_ } @cells;
        row($pattern, map { @$_ ? sprintf '%.2f', $_->[0] / $_->[1] : '-' } @cells);
    }
    print "\n**That error with free lists against V:2:M of equal bytes, percent** (without refit / with refit)\n\n";
    heads('V', @with);
    for my $v (64, 128) {
        row($v, map {
            my @free = equal_inputs("panel:$v\@0.75", $_);
            my @classic = equal_inputs("$v:2:8", $_);
            @free && @classic
                ? join ' / ', map { sprintf '%+.1f', 100 * ($free[$_] / $classic[$_] - 1) } 0, 1
                : '-'
        } @with);
    }
}

# ---- seeds ----

my %seeds;
for my $key (keys %line) {
    my ($what, $seed) = $key =~ /^(.*) (\d+)$/;
    $seeds{$what}{$seed} = $line{$key} if $line{$key}{eval};
}
my @several = sort grep { keys %{ $seeds{$_} } > 1 } keys %seeds;
if (@several) {
    print "\n**Calibration seeds** (loss; seed 0, 1, 2)\n\n";
    heads('setting', 'loss', 'largest difference');
    for my $what (@several) {
        my @loss = map { loss($seeds{$what}{$_}) } sort keys %{ $seeds{$what} };
        my ($low, $high) = (sort { $a <=> $b } @loss)[0, -1];
        row(named($what),
            join(', ', map { sprintf '%.3f', $_ } @loss), sprintf '%.3f', $high - $low);
    }
}

# ---- questions ----

# Nats of each part, mean over lines of several seeds.
sub nats {
    my @lines = @_;
    return map {
        my ($part, $sum) = ($_, 0);
        $sum += $_->{parts}[$part][1] for @lines;
        $sum / @lines;
    } 0 .. $#{ $lines[0]{parts} };
}

# Mean difference of nats a token (an image), of the same resamples of both: lists of lines, and
# the parts to look at (all).
sub difference {
    my ($ones, $others, @which) = @_;
    my @one = nats(@$ones);
    my @other = nats(@$others);
    @which = 0 .. $#one unless @which;
    my @parts = map { [ $ones->[0]{parts}[$_][0], $one[$_] - $other[$_] ] } @which;
    my ($all, $difference) = (0, 0);
    for (@parts) {
        $all += $_->[0];
        $difference += $_->[1];
    }
    my @means;
    srand 1;
    for (1 .. RESAMPLES) {
        my ($tokens, $sum) = (0, 0);
        for (@parts) {
            my $drawn = $parts[ rand @parts ];
            $tokens += $drawn->[0];
            $sum += $drawn->[1];
        }
        push @means, $sum / $tokens;
    }
    @means = sort { $a <=> $b } @means;
    return ($difference / $all, $means[ 0.025 * RESAMPLES ], $means[ 0.975 * RESAMPLES - 1 ]);
}

sub best {
    my ($pattern) = @_;
    my @known = grep { /^\Q$pattern\E .* pruned 0$/ && $line{$_}{eval} } keys %line;
    # Of equals the same one each time: where no values can be turned both lines are one.
    return (sort { loss($line{$a}) <=> loss($line{$b}) || $b cmp $a } @known)[0];
}

sub compare {
    my ($one, $other) = @_;
    return unless defined $one && defined $other && $line{$one} && $line{$other};
    return if $compared{"$one, $other"}++;
    printf "| %s | %s | %.3f | %.3f | %+.3f (%+.3f to %+.3f) |\n", named($one), named($other),
        loss($line{$one}), loss($line{$other}), difference([ $line{$one} ], [ $line{$other} ]);
}

# Of all seeds that both have, where these are several.
sub compare_seeds {
    my ($one, $other) = @_;
    my @seeds = sort grep { $seeds{$other}{$_} } keys %{ $seeds{$one} // {} };
    return if @seeds < 2;
    my @pair = map { my $what = $_; [ map { $seeds{$what}{$_} } @seeds ] } $one, $other;
    printf "| %s | %s | %d | %+.3f (%+.3f to %+.3f) |\n", named($one), named($other),
        scalar @seeds, difference(@pair);
}

print "\n**Pairs on the same ", ($images ? 'images' : 'documents'),
    "** (a difference below 0 says that the first is better)\n\n";
heads('first', 'second', 'loss', 'loss', 'difference');
for my $best (map { best($_) } qw(128:2:5 64:2:8 panel:64@0.75)) {
    for my $permute (qw(no yes stream)) {
        compare($best, key('2:4', $_, 'no', $permute)) for qw(wanda ria);
    }
    compare($best, key('2:4', 'sparsegpt', 'no'));
    compare($best, key('2:4', 'sparsegpt', 'yes'));
}
for my $v (64, 128) {
    for my $refit (qw(no yes)) {
        for my $method (@methods) {
            compare(key("panel:$v\@0.75", $method, $refit), key("$v:2:8", $method, $refit));
        }
    }
    compare(best("panel:$v\@0.75"), best("$v:2:8"));
}
for my $pattern (@patterns) {
    compare(key($pattern, 'joint', 'yes'), key($pattern, 'obs', 'yes'));
    compare(key($pattern, 'obs', 'yes'), key($pattern, 'sparsegpt', 'yes'));
    for my $method (@methods) {
        compare(key($pattern, $method, 'yes'), key($pattern, $method, 'no'));
        for my $refit (qw(no yes)) {
            compare(key($pattern, $method, $refit, 'yes'), key($pattern, $method, $refit));
            compare(key($pattern, $method, $refit, 'turned'), key($pattern, $method, $refit, 'yes'));
            compare(key($pattern, $method, $refit, 'stream'), key($pattern, $method, $refit));
            compare(key($pattern, $method, $refit, 'all'), key($pattern, $method, $refit, 'stream'));
        }
    }
}

# ---- the same over seeds ----

# A setting without its seed.
sub setting {
    my $key = key(@_);
    $key =~ s/ 0$//;
    return $key;
}

if (@several) {
    print "\n**Pairs, means of the seeds that both have**\n\n";
    heads('first', 'second', 'seeds', 'difference');
    for my $best (['obs', 'yes'], ['joint', 'yes'], map { ['joint', 'yes', $_] } qw(turned stream all)) {
        for my $permute (qw(no yes)) {
            compare_seeds(setting('128:2:5', @$best), setting('2:4', $_, 'no', $permute)) for qw(wanda ria);
        }
    }
    compare_seeds(setting('128:2:5', 'joint', 'yes', 'stream'), setting('128:2:5', 'joint', 'yes'));
    compare_seeds(setting('128:2:5', 'joint', 'yes', 'all'), setting('128:2:5', 'joint', 'yes', 'stream'));
    for my $v (64, 128) {
        compare_seeds(setting("panel:$v\@0.75", $_, 'yes'), setting("$v:2:8", $_, 'yes')) for qw(sparsegpt obs joint);
    }
    for my $pattern (@patterns) {
        compare_seeds(setting($pattern, 'joint', 'yes'), setting($pattern, 'obs', 'yes'));
        compare_seeds(setting($pattern, 'obs', 'yes'), setting($pattern, 'sparsegpt', 'yes'));
        compare_seeds(setting($pattern, 'sparsegpt', 'yes'), setting($pattern, 'sparsegpt', 'no'));
    }
}

# ---- chosen on one half, judged on the other ----

# Nats a token (an image) of some parts.
sub loss_of {
    my ($line, @which) = @_;
    my ($all, $sum) = (0, 0);
    for (@{ $line->{parts} }[@which]) {
        $all += $_->[0];
        $sum += $_->[1];
    }
    return $sum / $all;
}

my $parts = @{ $dense->{parts} };
my @first = 0 .. $parts / 2 - 1;
my @second = $parts / 2 .. $parts - 1;

# The one of settings (without seeds) that loses least on the first half.
sub best_on_first {
    my %loss = map { $_ => loss_of($seeds{$_}{0}, @first) } grep { $seeds{$_}{0} } @_;
    return (sort { $loss{$a} <=> $loss{$b} || $a cmp $b } keys %loss)[0];
}

print "\n**The best of each pattern on the first half of the ", ($images ? 'images' : 'documents'),
    ", judged on the second** (a difference below 0 says that the pattern is better)\n\n";
heads('best on the first half', 'of', 'against', 'draws', 'first half', 'second half');
my @scores = sort grep { /^2:4 (wanda|ria) no \S+ pruned$/ } keys %seeds;
for my $pattern (grep { $_ ne '2:4' } @patterns) {
    my @known = grep { /^\Q$pattern\E .* pruned$/ && $seeds{$_}{0} } keys %seeds;
    my $best = best_on_first(@known);
    next unless defined $best;
    my @rivals = (map({ setting('2:4', $_, 'no') } qw(wanda ria)), best_on_first(@scores) // ());
    my %seen;
    for my $rival (grep { !$seen{$_}++ } @rivals) {
        my @draws = sort grep { $seeds{$rival}{$_} } keys %{ $seeds{$best} };
        next unless @draws;
        my @pair = map { my $what = $_; [ map { $seeds{$what}{$_} } @draws ] } $best, $rival;
        row(named($best), scalar @known, named($rival), scalar @draws,
            map { sprintf '%+.3f (%+.3f to %+.3f)', difference(@pair, @$_) } \@first, \@second);
    }
}

# ---- mask diversity ----

# ln of the number of masks, for each weight: Zhao et al.'s mask diversity.
sub log_diversity {
    my ($v, $m) = @_;
    my $columns = log($m * ($m - 1) * ($m - 2) * ($m - 3) / 24);
    return $columns / ($v * $m) + log(6) / $m;
}

# V at equal sparsity: what more masks are said to be better for.
my @diverse;
for my $m (5, 8) {
    for my $method (@methods) {
        for my $refit (qw(no yes)) {
            my ($one, $other) = map { key("$_:2:$m", $method, $refit) } 64, 128;
            next unless $line{$one} && $line{$other} && $line{$one}{eval} && $line{$other}{eval};
            push @diverse, [ $one, $other, difference([ $line{$one} ], [ $line{$other} ]) ];
        }
    }
}
if (@diverse) {
    printf "\n**Mask diversity: V = 64 against V = 128 at equal sparsity** (ln K %.4f and %.4f at M = 5, %.4f and %.4f at"
        . " M = 8; a difference below 0 is what it says)\n\n", map { my $m = $_; map { log_diversity($_, $m) } 64, 128 } 5, 8;
    heads('first', 'second', 'difference');
    row(named($_->[0]), named($_->[1]), sprintf '%+.3f (%+.3f to %+.3f)', @{$_}[2 .. 4]) for @diverse;
    printf "\nOf %d differences %d are below 0, %d with their interval, and %d above it with theirs.\n",
        scalar @diverse, map { my $is = $_; scalar grep { $is->(@{$_}[2 .. 4]) } @diverse }
        (sub { $_[0] < 0 }, sub { $_[2] < 0 }, sub { $_[1] > 0 });
}

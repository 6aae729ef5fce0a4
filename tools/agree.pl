#!/usr/bin/perl
# One comparison of tools/agree.sh: what two devices have said of one model, ONE and OTHER being JSON of `espalier
# eval` or `run`. Prints a line, and ends with 1 where they are further apart than allowed.
# Usage: agree.pl perplexity NAME BOUND OF_A_WINDOW ONE OTHER
#        agree.pl entropy NAME BOUND ONE OTHER            of images' labels; top-1 is shown
#        agree.pl scores NAME BOUND SAME_LABELS ONE OTHER
#        agree.pl vectors NAME BOUND ONE OTHER
#        agree.pl maps NAME BOUND ONE OTHER               safetensors of one tensor, f32
#        agree.pl texts NAME FOLDER ONE OTHER             FOLDER/prompts has a prompt a line; numbers of texts that
#                                                         differ go to FOLDER/differ, and what they and their
#                                                         prompts are there to FOLDER/NUMBER.one and NUMBER.other
#        agree.pl tie NAME BOUND ONE OTHER                nats of those two, by token: where they part
#        agree.pl halve NAME FILE                         weights of bf16 become f16, in their place
use strict;
use warnings;
use Encode qw(decode_utf8);
use JSON::PP;
use List::Util qw(max);

binmode STDOUT, ':utf8';

sub bytes_of {
    my ($file) = @_;
    open my $in, '<:raw', $file or die "$file: $!\n";
    local $/;
    return <$in>;
}

sub said { return map { decode_json(bytes_of($_)) } @_ }

# Ends the program.
sub verdict {
    my ($good, $name, $format, @values) = @_;
    printf "%s $name: $format\n", $good ? 'ok  ' : 'FAIL', @values;
    exit($good ? 0 : 1);
}

# What is no number is infinitely far.
sub apart {
    my ($one, $other) = @_;
    return 9**9**9 unless defined $one && defined $other && abs($other) > 0;
    return abs($one - $other) / abs($other);
}

# The largest difference and the largest of the second numbers.
sub furthest {
    my ($one, $other) = @_;
    die "nothing to compare, or not as much of one as of the other\n" if !@$one || @$one != @$other;
    my ($difference, $largest) = (0, 0);
    for my $i (0 .. $#$one) {
        $difference = max($difference, abs($one->[$i] - $other->[$i]));
        $largest = max($largest, abs $other->[$i]);
    }
    return $largest > 0 ? $difference / $largest : 9**9**9;
}

sub perplexity {
    my ($name, $bound, $window_bound, @files) = @_;
    my ($one, $other) = said(@files);
    my ($parts, $others) = ($one->{parts}, $other->{parts});
    die "not the same windows\n" if !@$parts || @$parts != @$others || $one->{tokens} != $other->{tokens};
    my $worst = 0;
    for my $i (0 .. $#$parts) {
        my $nats = ($parts->[$i]{nats} - $others->[$i]{nats}) / $others->[$i]{tokens};
        $worst = max($worst, abs(exp($nats) - 1));
    }
    my $apart = apart($one->{perplexity}, $other->{perplexity});
    verdict($apart <= $bound && $worst <= $window_bound, $name,
        '%.6g in %s and %.6g in %s, %.4f %% apart (%g %% at most), in one of %d windows %.3f %% (%g %%)',
        $one->{perplexity}, $one->{compute}, $other->{perplexity}, $other->{compute}, 100 * $apart, 100 * $bound,
        scalar @$parts, 100 * $worst, 100 * $window_bound);
}

sub entropy {
    my ($name, $bound, @files) = @_;
    my ($one, $other) = said(@files);
    die "not the same images\n" if $one->{images} < 1 || $one->{images} != $other->{images};
    my $apart = apart($one->{cross_entropy}, $other->{cross_entropy});
    verdict($apart <= $bound, $name, '%.5f and %.5f, %.3f %% apart (%g %% at most); top-1 %.4f and %.4f',
        $one->{cross_entropy}, $other->{cross_entropy}, 100 * $apart, 100 * $bound, $one->{top1}, $other->{top1});
}

# Of each image, by the labels' numbers.
sub scores_of {
    my ($said) = @_;
    return map { my $image = $_; map { $_->{score} } sort { $a->{index} <=> $b->{index} } @{ $image->{top} } }
        @{ $said->{images} };
}

sub scores {
    my ($name, $bound, $least_same, @files) = @_;
    my ($one, $other) = said(@files);
    my $apart = furthest([scores_of($one)], [scores_of($other)]);
    my $images = @{ $one->{images} };
    my $same = grep { $one->{images}[$_]{top}[0]{index} == $other->{images}[$_]{top}[0]{index} } 0 .. $images - 1;
    verdict($apart <= $bound && $same >= $least_same * $images, $name,
        '%.2f %% of the largest apart (%g %% at most), %d of %d images the same label (%g %% at least)',
        100 * $apart, 100 * $bound, $same, $images, 100 * $least_same);
}

sub outputs {
    my ($name, $bound, @sides) = @_;
    my $apart = furthest(@sides);
    verdict($apart <= $bound, $name, '%d numbers, %.2f %% of the largest apart (%g %% at most)',
        scalar @{ $sides[0] }, 100 * $apart, 100 * $bound);
}

sub vectors {
    my ($name, $bound, @files) = @_;
    outputs($name, $bound, map { [map { @{ $_->{embedding} } } @{ $_->{texts} }] } said(@files));
}

sub numbers_of_map {
    my $bytes = bytes_of($_[0]);
    return [unpack 'f<*', substr $bytes, 8 + unpack('Q<', $bytes)];
}

sub maps {
    my ($name, $bound, @files) = @_;
    outputs($name, $bound, map { numbers_of_map($_) } @files);
}

# What ended a text is a part of it.
sub texts_of {
    my ($said) = @_;
    return map { $_->{text} . ($_->{stop} eq 'eos' ? '<|endoftext|>' : '') } @{ $said->{texts} // [$said] };
}

sub first_difference {
    my ($one, $other) = @_;
    my $at = 0;
    $at++ while $at < length $one && $at < length $other && substr($one, $at, 1) eq substr($other, $at, 1);
    return $at;
}

sub write_text {
    my ($file, $text) = @_;
    open my $out, '>:utf8', $file or die "$file: $!\n";
    print $out $text;
    close $out or die "$file: $!\n";
}

# A piece of a text on one line.
sub piece {
    my ($text) = @_;
    $text =~ s/\s/ /g;
    return $text;
}

sub texts {
    my ($name, $folder, @files) = @_;
    my @prompts = map { decode_utf8($_) } split /\n/, bytes_of("$folder/prompts");
    my ($one, $other) = map { [texts_of($_)] } said(@files);
    my $count = @$one;
    verdict(0, $name, 'no texts, or not as many') if $count < 1 || $count != @$other;
    my @differ = grep { $one->[$_] ne $other->[$_] } 0 .. $count - 1;
    verdict(1, $name, '%d of %d the same', $count, $count) if !@differ;
    for my $i (@differ) {
        my $at = first_difference($one->[$i], $other->[$i]);
        my @pieces = map { substr $_->[$i], $at, 24 } $one, $other;
        printf "     $name: number %d differs from its character %d on: \"%s\" and \"%s\"\n", $i + 1, $at + 1,
            map { piece($_) } @pieces;
        my $begin = $prompts[$i] . substr $one->[$i], 0, $at;
        write_text("$folder/" . ($i + 1) . '.one', $begin . $pieces[0]);
        write_text("$folder/" . ($i + 1) . '.other', $begin . $pieces[1]);
    }
    write_text("$folder/differ", join '', map { $_ + 1 . "\n" } @differ);
    exit 1;
}

sub tie {
    my ($name, $bound, @files) = @_;
    my ($one, $other) = map { [map { $_->{nats} } @{ $_->{parts} }] } said(@files);
    my $at = 0;
    $at++ while $at < @$one && $at < @$other && abs($one->[$at] - $other->[$at]) < 1e-9;
    verdict(0, $name, 'no token differs') if $at == @$one || $at == @$other;
    my $apart = $one->[$at] - $other->[$at];
    verdict($apart <= $bound, $name, 'the other side finds its own token %.4f nats likelier (%g at most)', $apart,
        $bound);
}

# The 8 bits of a bf16's fraction fit an f16's; what is too small for its exponent is rounded, what is too large cut.
sub half {
    my ($bits) = @_;
    my ($sign, $exponent, $fraction) = ($bits & 0x8000, ($bits >> 7 & 0xff) - 127, $bits & 0x7f);
    return $sign | 0x7bff if $exponent > 15;
    return $sign | ($exponent + 15) << 10 | $fraction << 3 if $exponent >= -14;
    return $sign | int((128 + $fraction) * 2**($exponent + 17) + 0.5);
}

sub halve {
    my ($name, $file) = @_;
    my $bytes = bytes_of($file);
    my $at = 8 + unpack 'Q<', $bytes;
    my $header = substr $bytes, 8, $at - 8;
    die "$file: weights of several types\n" if $header =~ /"dtype":"(?!BF16)/;
    $header =~ s/"BF16"/"F16" /g;
    my @halves = map { half($_) } 0 .. 65535;
    open my $out, '>:raw', $file or die "$file: $!\n";
    print $out substr($bytes, 0, 8), $header, pack 'v*', @halves[unpack 'v*', substr $bytes, $at];
    close $out or die "$file: $!\n";
}

my %kinds = (perplexity => \&perplexity, entropy => \&entropy, scores => \&scores, vectors => \&vectors,
    maps => \&maps, texts => \&texts, tie => \&tie, halve => \&halve);
my $kind = $kinds{shift @ARGV // ''} or die "usage: agree.pl KIND ARGUMENTS...; KIND: @{[sort keys %kinds]}\n";
eval { $kind->(@ARGV); 1 } or verdict(0, $ARGV[0], '%s', $@ =~ s/\n.*//sr);

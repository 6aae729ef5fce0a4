#!/usr/bin/perl
# The beginning of every document of a text: whole paragraphs, the first one always and others while
# they end within BYTES bytes. Writes the shorter text and the sizes of its documents.
# Usage: accuracy_text.pl TEXT SIZES BYTES SHORTER SHORTER_SIZES      (BYTES 0: everything)
use strict;
use warnings;

my ($text, $sizes, $most, $shorter, $shorter_sizes) = @ARGV;
open my $in, '<:raw', $text or die "$text: $!\n";
my $all = do { local $/; <$in> };
open my $list, '<', $sizes or die "$sizes: $!\n";
open my $out, '>:raw', $shorter or die "$shorter: $!\n";
open my $out_sizes, '>', $shorter_sizes or die "$shorter_sizes: $!\n";
my $at = 0;
while (<$list>) {
    my ($size, $name) = /^(\d+)\s*(.*)/ or die "$sizes, line $.: a number of bytes was expected\n";
    my $document = substr $all, $at, $size;
    $at += $size;
    my $kept = '';
    for my $paragraph ($document =~ /\G(.+?(?:\n\n|\z))/gs) {
        last if $most > 0 && $kept ne '' && length($kept) + length($paragraph) > $most;
        $kept .= $paragraph;
    }
    print $out $kept;
    print $out_sizes length($kept), "\t$name\n";
}
die "$sizes does not fit $text: $at bytes of ", length($all), "\n" if $at != length $all;
close $out or die "$shorter: $!\n";
close $out_sizes or die "$shorter_sizes: $!\n";

#!/usr/bin/perl
# Turns the public headers into docs/api.md: each declaration with the comment above it, and what the
# header's first comment says. Usage: perl tools/api_docs.pl include/espalier > docs/api.md
#
# It knows the headers' one form: a head comment, sections marked "---- title ----", declarations that
# start in the first column, and a comment directly above that belongs to what follows.
use strict;
use warnings;

my $folder = shift or die "usage: $0 FOLDER\n";

# Text of a comment, one line a paragraph or list item kept as it is written.
sub comment_text {
    my ($comment) = @_;
    $comment =~ s{^/\*\s?}{};
    $comment =~ s{\s*\*/\s*$}{};
    $comment =~ s{\n ?\*? ?}{\n}g;
    $comment =~ s{[ \t]+$}{}mg;
    return $comment;
}

# Names become code; other marks of Markdown are kept from meaning anything.
sub escape {
    my ($text) = @_;
    return join '', map {
        /^`/ ? $_ : /^\w*_\w*\*?$/ ? "`$_`" : s{([*<|])}{\\$1}gr
    } split /(`[^`]*`|\b\w*_\w*\b\*?)/, $text;
}

# Lines indented by two or more are drawings and lists of values: they stay as they are.
sub prose {
    my ($text) = @_;
    my $out = '';
    my $fenced = 0;
    for my $line (split /\n/, $text) {
        my $is_item = $line =~ /^\s*- /;
        my $drawn = $line =~ /^\s{2,}\S/ && !$is_item && ($fenced || $line =~ /^\s{2,}\S.*\s{2,}\S/);
        if ($drawn != $fenced) {
            $out .= $drawn ? "\n```\n" : "```\n\n";
            $fenced = $drawn;
        }
        $line =~ s/^\s+// if !$drawn && !$is_item && $out !~ /\n- [^\n]*\n$/;
        $out .= ($drawn ? $line : escape($line)) . "\n";
    }
    $out .= "```\n" if $fenced;
    return $out;
}

# A declaration as its reader wants it: without the markers of linkage.
sub signature {
    my ($code) = @_;
    $code =~ s/\b(ESP_MUST_CHECK|ESP_API)\s+//g;
    return $code if $code =~ /[{}]|^#/;
    $code =~ s/\s+/ /g;
    return $code if length $code <= 90;
    my ($head, $arguments) = $code =~ /^([^(]*\()(.*)$/;
    return $code if !defined $arguments;
    my ($line, $out) = ($head, '');
    for my $argument (split /(?<=,) /, $arguments) {
        if (length($line) + length($argument) > 90) {
            $out .= $line . "\n";
            $line = '    ';
        }
        $line .= ($line =~ /[( ]$/ ? '' : ' ') . $argument;
    }
    return $out . $line;
}

# Names that a declaration brings into the world, for headings and links.
sub names {
    my ($code) = @_;
    return ($1) if $code =~ /^#define\s+(\w+)/;
    return ($1) if $code =~ /^typedef\s+\w[^;{]*\(\*(\w+)\)/s;
    return ($1) if $code =~ /^typedef\b.*?\b(\w+)\s*;\s*$/s;
    return ($1) if $code =~ /\b(esp_\w+)\s*\(/;
    return ();
}

sub read_header {
    my ($path) = @_;
    open my $file, '<', $path or die "$path: $!\n";
    local $/;
    my $text = <$file>;
    $text =~ s/^#if(?:n?def)? [^\n]*\n#define \w+_H\n//m;
    $text =~ s/#ifdef __cplusplus.*?#endif\n//gs;
    $text =~ s/^#if defined\(__GNUC__\).*?#endif\n//ms; # attributes
    $text =~ s/^#(include|endif)[^\n]*(\n|$)//mg;
    return $text;
}

# Breaks a header into [kind, text]: comment, code, blank.
sub pieces {
    my ($text) = @_;
    my @pieces;
    while (length $text) {
        if ($text =~ s{^\n+}{}) {
            push @pieces, ['blank', ''];
        } elsif ($text =~ s{^(/\*.*?\*/)[ \t]*\n}{}s) {
            push @pieces, ['comment', $1];
        } elsif ($text =~ s{^(#define (?:[^\n]*\\\n)*[^\n]*)\n}{}) {
            (my $macro = $1) =~ s/[ \t]*\\\n\s*/ /g;
            push @pieces, ['code', $macro];
        } elsif ($text =~ s~^((?:typedef\s+)?(?:struct|enum)\b[^;{]*\{[^\n]*\};)[ \t]*([^\n]*)\n~~
            || $text =~ s~^((?:typedef\s+)?(?:struct|enum)\b[^;{]*\{.*?\}\s*\w+;)[ \t]*([^\n]*)\n~~s
            || $text =~ s~^(\S[^;]*;)[ \t]*([^\n]*)\n~~s) {
            push @pieces, ['code', $2 eq '' ? $1 : "$1 $2"];
        } else {
            die "cannot read: " . substr($text, 0, 80) . "\n";
        }
    }
    return @pieces;
}

sub document {
    my ($path) = @_;
    my ($name) = $path =~ m{([^/]+)$};
    my @pieces = pieces(read_header($path));
    my $head = shift @pieces;
    die "$path has no head comment\n" if $head->[0] ne 'comment';
    my ($title, $about) = comment_text($head->[1]) =~ /^\S+ - (.*?)(?:\n\n(.*))?$/s;
    die "$path: the head comment does not start 'NAME - '\n" if !defined $title;
    $title =~ s/\n/ /g;
    my $out = "## \\<espalier/$name>\n\n" . escape(ucfirst $title) . "\n\n";
    $out .= prose($about) . "\n" if defined $about;
    my $note;
    my @code;
    my $flush = sub {
        return if !@code && !defined $note;
        my %seen;
        my @names = grep { !$seen{$_}++ } map { names($_) } @code;
        $out .= '### ' . join(', ', map { "`$_`" } @names) . "\n\n" if @names;
        $out .= "```c\n" . join("\n", map { signature($_) } @code) . "\n```\n\n" if @code;
        $out .= prose($note) . "\n" if defined $note;
        ($note, @code) = (undef);
    };
    for my $piece (@pieces) {
        my ($kind, $text) = @$piece;
        if ($kind eq 'comment') {
            $flush->();
            my $said = comment_text($text);
            if ($said =~ /^---- (.*?)\s*----$/s) {
                (my $section = $1) =~ s/\n/ /g;
                $out .= '**' . escape(ucfirst $section) . "**\n\n";
            } else {
                $note = $said;
            }
        } elsif ($kind eq 'code') {
            # One comment may stand above a few short lines; a function is an entry of its own.
            $flush->() if @code && "$code[-1] $text" =~ /\(|\{/ && !is_handle($code[-1]);
            push @code, $text;
        } else {
            $flush->();
        }
    }
    $flush->();
    return $out;
}

# An opaque handle stands with the call that makes it.
sub is_handle {
    my ($code) = @_;
    return $code =~ /^typedef struct (\w+) \1;$/;
}

my @headers = sort glob "$folder/*.h";
@headers = grep { !m{/espalier\.h$} } @headers;
print "# The C interface\n\n"
    . "Made from the public headers by `tools/api_docs.pl`; edit those, then run `make api-docs`.\n"
    . "`#include <espalier/espalier.h>` brings in everything. Functions that return `esp_status` must\n"
    . "have their result looked at.\n\n";
for my $header (@headers) {
    my ($name) = $header =~ m{([^/]+)$};
    (my $anchor = "espalier$name") =~ s/\.//;
    print "- [`<espalier/$name>`](#$anchor)\n";
}
print "\n";
my $all = join '', map { document($_) } @headers;
$all =~ s/\n{3,}/\n\n/g;
$all =~ s/\s+$/\n/;
print $all;

#!/usr/bin/perl
# One line of results: a setting, and what is worth keeping of prune's and eval's JSON.
# Usage: accuracy_line.pl KEY PRUNE EVAL          (files, or - for none; KEY: "setting":{...})
use strict;
use warnings;
use JSON::PP;

my ($key, $prune_file, $eval_file) = @ARGV;
my $json = JSON::PP->new->canonical;

sub read_json {
    my ($file) = @_;
    return undef if $file eq '-';
    open my $in, '<', $file or die "$file: $!\n";
    local $/;
    return decode_json(<$in>);
}

sub pick {
    my ($from, @names) = @_;
    return map { $_ => $from->{$_} } grep { exists $from->{$_} } @names;
}

# Six digits are more than intervals need.
sub rounded { return map { defined $_ ? 0 + sprintf '%.6g', $_ : undef } @_ }

my %line;
if (my $prune = read_json($prune_file)) {
    my $calibration = $prune->{calibration};
    $line{prune} = { pick($prune, qw(pruned_weights pruned_stored_bytes total_seconds)) };
    $line{calibration} = {
        pick($calibration, qw(samples tokens data_crc32c mean_error median_error
            median_masked_error median_own_error algebra layers_on)) } if $calibration;
    # [before the refit, as stored, against the layer's own weights]
    $line{layers} = [ map { [ rounded(@{$_}{qw(masked_error error own_error)}) ] }
            @{ $calibration->{layers} } ] if $calibration;
}
if (my $eval = read_json($eval_file)) {
    $line{eval} = { pick($eval, qw(tokens nats mean_nats mean_kl top1_agreement images top1
            cross_entropy baseline_top1 intervals device compute threads seconds)) };
    # [tokens, nats, KL, right] of each document or image
    $line{parts} = [ map { [ rounded(@{$_}{qw(tokens nats kl top1)}) ] } @{ $eval->{parts} } ];
}
my $rest = $json->encode(\%line);
$rest =~ s/^\{//;
print "{$key,$rest\n";

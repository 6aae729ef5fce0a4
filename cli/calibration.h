/* prune --calibrate: options, data and what is shown of it. */
#ifndef CLI_CALIBRATION_H
#define CLI_CALIBRATION_H

#include <stddef.h>

#include "cli.h"
#include "images.h"
#include "layer_table.h"

typedef struct calibration_args {
    const char *path;    /* NULL: without */
    int method, targets; /* esp_method, esp_targets */
    int inputs;          /* index into calibration_inputs */
    bool refit, gradual, respect, turn;
    double damping, norm_power;
    int64_t tokens, context, seed;
} calibration_args;

extern const char *const calibration_methods[], *const calibration_targets[],
                                                    *const calibration_inputs[];

/* Entries of an option table for the struct `type` that holds a calibration_args named
 * `calibration`. WHEN begins the help: "with --calibrate: ", "" where that must be there. SUMS:
 * what every command takes that may do without. */
#define CALIBRATION_FIELD(type, member) offsetof(type, calibration.member)
#define CALIBRATION_TOKENS_OPTION(type, WHEN)                                                      \
    {                                                                                              \
        .name = "calibrate-tokens", .kind = OPTION_INTEGER,                                        \
        .offset = CALIBRATION_FIELD(type, tokens), .argument = "N",                                \
        .help = WHEN "tokens to look at; 0: at most 65536", .fallback = "0", .least = 0,           \
        .most = INT32_MAX                                                                          \
    }
#define CALIBRATION_SEED_OPTION(type, WHEN)                                                        \
    {                                                                                              \
        .name = "seed", .kind = OPTION_INTEGER, .offset = CALIBRATION_FIELD(type, seed),           \
        .argument = "N",                                                                           \
        .help = WHEN "chooses the samples where there are more than are looked at",                \
        .fallback = "0", .least = 0, .most = INT64_MAX                                             \
    }
#define CALIBRATION_SUMS_OPTIONS(type)                                                             \
    {.name = "damping",                                                                            \
     .kind = OPTION_NUMBER,                                                                        \
     .offset = CALIBRATION_FIELD(type, damping),                                                   \
     .argument = "D",                                                                              \
     .help = "with --calibrate: added to the second moments' diagonal, as a share of its "         \
             "mean; 0: 0.01",                                                                      \
     .fallback = "0",                                                                              \
     .least = 0,                                                                                   \
     .most = 100},                                                                                 \
        CALIBRATION_TOKENS_OPTION(type, "with --calibrate: ")
#define CALIBRATION_MASKS_OPTIONS(type)                                                            \
    {.name = "calibrate",                                                                          \
     .letter = 'c',                                                                                \
     .kind = OPTION_TEXT,                                                                          \
     .offset = CALIBRATION_FIELD(type, path),                                                      \
     .argument = "PATH",                                                                           \
     .help = "look at what layers read: a text, for models of images a folder or an index of "     \
             "them"},                                                                              \
        {.name = "method",                                                                         \
         .letter = 'm',                                                                            \
         .kind = OPTION_CHOICE,                                                                    \
         .offset = CALIBRATION_FIELD(type, method),                                                \
         .argument = "METHOD",                                                                     \
         .help = "with --calibrate: how masks are chosen",                                         \
         .fallback = "sparsegpt",                                                                  \
         .choices = calibration_methods},                                                          \
        {.name = "norm-power",                                                                     \
         .kind = OPTION_NUMBER,                                                                    \
         .offset = CALIBRATION_FIELD(type, norm_power),                                            \
         .argument = "A",                                                                          \
         .help = "with --method wanda or ria: the power of the inputs' norm; 0: 1 and 0.5, as "    \
                 "their papers have it",                                                           \
         .fallback = "0",                                                                          \
         .least = 0,                                                                               \
         .most = 8},                                                                               \
    {                                                                                              \
        .name = "gradual", .kind = OPTION_FLAG, .offset = CALIBRATION_FIELD(type, gradual),        \
        .help = "with --refit: V:2:M in steps that keep ever less (5, 4, 3, 2 of 8), each "        \
                "refitted before the next; not with obs, joint and venom"                          \
    }
/* What prune takes besides. */
#define CALIBRATION_VALUES_OPTIONS(type)                                                           \
    {.name = "refit",                                                                              \
     .kind = OPTION_FLAG,                                                                          \
     .offset = CALIBRATION_FIELD(type, refit),                                                     \
     .help = "with --calibrate: least squares of the kept weights against the dense outputs"},     \
        {.name = "turn-values",                                                                    \
         .kind = OPTION_FLAG,                                                                      \
         .offset = CALIBRATION_FIELD(type, turn),                                                  \
         .help = "with --calibrate: turn values of attention to their principal axes first; "      \
                 "the model computes the same, and it costs nothing when run"},                    \
        {.name = "targets",                                                                        \
         .kind = OPTION_CHOICE,                                                                    \
         .offset = CALIBRATION_FIELD(type, targets),                                               \
         .argument = "TARGETS",                                                                    \
         .help = "with --calibrate: what outputs are to come near to: the dense model's, making "  \
                 "up for what the residual stream has lost; the dense model's; or those of the "   \
                 "layer's dense weights on the pruned model's inputs",                             \
         .fallback = "stream",                                                                     \
         .choices = calibration_targets},                                                          \
    {                                                                                              \
        .name = "inputs", .kind = OPTION_CHOICE, .offset = CALIBRATION_FIELD(type, inputs),        \
        .argument = "INPUTS",                                                                      \
        .help = "with --calibrate: what layers read: what the layers before them make, as "        \
                "pruned; or what the dense model's make, each layer as if it were the only one "   \
                "pruned (targets: layer)",                                                         \
        .fallback = "pruned", .choices = calibration_inputs                                        \
    }
#define CALIBRATION_DATA_OPTIONS(type)                                                             \
    {.name = "respect",                                                                            \
     .kind = OPTION_FLAG,                                                                          \
     .offset = CALIBRATION_FIELD(type, respect),                                                   \
     .help = "with --calibrate: zeros of the weights stay zeros"},                                 \
        CALIBRATION_SUMS_OPTIONS(type),                                                            \
        {.name = "calibrate-context",                                                              \
         .kind = OPTION_INTEGER,                                                                   \
         .offset = CALIBRATION_FIELD(type, context),                                               \
         .argument = "N",                                                                          \
         .help = "with --calibrate: tokens of a piece of text; 0: the model's context, at most "   \
                 "2048",                                                                           \
         .fallback = "0",                                                                          \
         .least = 0,                                                                               \
         .most = INT32_MAX},                                                                       \
        CALIBRATION_SEED_OPTION(type, "with --calibrate: ")

/* Samples of a run, and options that point to them. */
typedef struct calibration_data {
    char *text;
    opened_images *images;
    esp_image_set set;
} calibration_data;

/* Flags that mean nothing without --calibrate. */
ESP_MUST_CHECK esp_status calibration_check(const calibration_args *args, esp_error *error);

/* What args say of the model operands[0]; data: to be freed, after a failure too. */
ESP_MUST_CHECK esp_status calibration_load(cli_state *cli, const calibration_args *args,
                                           calibration_data *data, esp_calibration_options *options,
                                           esp_error *error);
void calibration_data_free(calibration_data *data);

/* esp_prune_calibrated with what args say; permutation: NULL, or where the orders of channels go
 * that are looked for first, to be freed after a failure too. */
ESP_MUST_CHECK esp_status prune_calibrated(cli_state *cli, const calibration_args *args,
                                           const char *out, const esp_prune_options *prune,
                                           esp_permutation **permutation, layer_report *report,
                                           esp_prune_summary *summary, esp_error *error);

#endif

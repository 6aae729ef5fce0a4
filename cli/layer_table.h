/* What prune and convert show: a row per layer, and totals. And the options that both take. */
#ifndef CLI_LAYER_TABLE_H
#define CLI_LAYER_TABLE_H

#include "cli.h"
#include "output.h"
#include "recipe.h"

/* ---- which layer gets which pattern ---- */

typedef struct pattern_args {
    const char *pattern, *recipe;
    text_list rules; /* GLOB=PATTERN */
    text_list skips;
} pattern_args;

/* Entries of an option table for the struct `type` that holds a pattern_args named `which`. */
#define PATTERN_OPTIONS(type)                                                                      \
    {.name = "pattern",                                                                            \
     .letter = 'p',                                                                                \
     .kind = OPTION_TEXT,                                                                          \
     .offset = offsetof(type, which.pattern),                                                      \
     .argument = "PATTERN",                                                                        \
     .help = "2:4, 64:2:8, panel:64@0.75, 4:8, dense..."},                                         \
        {.name = "recipe",                                                                         \
         .kind = OPTION_TEXT,                                                                      \
         .offset = offsetof(type, which.recipe),                                                   \
         .argument = "FILE",                                                                       \
         .help = "patterns layer by layer, as 'espalier advise --recipe' writes them"},            \
        {.name = "pattern-for",                                                                    \
         .kind = OPTION_LIST,                                                                      \
         .offset = offsetof(type, which.rules),                                                    \
         .argument = "GLOB=PATTERN",                                                               \
         .help = "another pattern for layers of that name; the first match wins"},                 \
    {                                                                                              \
        .name = "skip", .kind = OPTION_LIST, .offset = offsetof(type, which.skips),                \
        .argument = "GLOB", .help = "leave layers of that name as they are; wins over patterns"    \
    }

/* What the options of a run point to. */
typedef struct pattern_rules {
    esp_pattern_rule *rules; /* of the command line, then of the recipe */
    recipe recipe;
} pattern_rules;

/* Fills the pattern, rules and skips of options; a recipe's rules come behind those of the command
 * line. rules: to be freed, after a failure too. */
ESP_MUST_CHECK esp_status parse_patterns(const pattern_args *args, esp_prune_options *options,
                                         pattern_rules *rules, esp_error *error);
void pattern_rules_free(pattern_rules *rules);

/* Entries of an option table for the struct `type` with members out and shard_size, texts, and
 * force, a flag: what commands that write a folder share. */
#define OUT_OPTION(type)                                                                           \
    {                                                                                              \
        .name = "out", .letter = 'o', .kind = OPTION_TEXT, .offset = offsetof(type, out),          \
        .argument = "FOLDER", .help = "folder to make", .required = true                           \
    }
#define FOLDER_OPTIONS(type)                                                                       \
    {.name = "shard-size",                                                                         \
     .kind = OPTION_TEXT,                                                                          \
     .offset = offsetof(type, shard_size),                                                         \
     .argument = "SIZE",                                                                           \
     .help = "several files of at most so many bytes of tensors, such as 5GB or 500MB"},           \
    {                                                                                              \
        .name = "force", .letter = 'f', .kind = OPTION_FLAG, .offset = offsetof(type, force),      \
        .help = "replace FOLDER if espalier made it"                                               \
    }
/* The shard size in bytes; 0 for NULL. */
ESP_MUST_CHECK esp_status parse_shard_size(const char *text, uint64_t *bytes, esp_error *error);

/* ---- the report ---- */

typedef struct layer_report {
    cli_state *cli;
    cli_table table;
    cli_record layers;
    bool dry_run;
    int64_t other_tensors;
    size_t other_bytes;
    int64_t mask_weights;               /* weights of layers whose mask was chosen */
    const esp_permutation *permutation; /* NULL: none */
    /* Of a calibrated pruning; NULL and "" without */
    cli_record calibration;
    char calibration_text[640];
} layer_report;

void layer_report_begin(layer_report *report, cli_state *cli, bool dry_run);
/* An esp_layer_report_fn; user is the report, and for its progress cli_progress_step. */
void layer_report_add(void *user, const esp_layer_report *layer);
/* Prints it as text or JSON. out NULL: nothing was written. */
ESP_MUST_CHECK esp_status layer_report_print(layer_report *report, const char *out,
                                             const esp_prune_summary *summary, esp_error *error);
void layer_report_free(layer_report *report);

#endif

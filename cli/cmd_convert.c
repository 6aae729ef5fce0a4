/* espalier convert: the same weights in another form. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "layer_table.h"

typedef struct convert_args {
    pattern_args which;
    const char *out, *to, *shard_size;
    bool compress, dense, force;
} convert_args;

static const struct {
    const char *name;
    esp_convert_target target;
} forms[] = {{"sparse-24-bitmask", ESP_CONVERT_SPARSE_24_BITMASK},
             {"sparse-bitmask", ESP_CONVERT_SPARSE_BITMASK}};

static esp_status parse_target(const convert_args *args, esp_convert_target *target,
                               esp_error *error)
{
    *target = args->dense ? ESP_CONVERT_DENSE : ESP_CONVERT_COMPRESS;
    for (int i = 0; i < COUNT(forms) && args->to != NULL; i++) {
        if (strcmp(args->to, forms[i].name) == 0) {
            *target = forms[i].target;
            return ESP_OK;
        }
    }
    return args->to == NULL
               ? ESP_OK
               : cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                          "--to '%s': sparse-24-bitmask or sparse-bitmask was expected", args->to);
}

static esp_status check_args(const convert_args *args, esp_error *error)
{
    if (args->compress + args->dense + (args->to != NULL) != 1) {
        return cli_fail(
            error, ESP_BAD_ARGUMENT, "usage.missing_option",
            "either --compress or --dense, or --to FORM, must be given; see 'espalier convert "
            "--help'");
    }
    if (args->to != NULL && (args->which.pattern != NULL || args->which.recipe != NULL)) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.extra_option",
                        "--to stores the zeros that are there and takes no pattern or recipe; see "
                        "'espalier convert --help'");
    }
    if (args->compress && args->which.pattern == NULL && args->which.recipe == NULL) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.missing_option",
                        "--compress needs --pattern PATTERN, for example -p 2:4; see 'espalier "
                        "convert --help'");
    }
    bool has_patterns = args->which.pattern != NULL || args->which.recipe != NULL ||
                        args->which.rules.count > 0 || args->which.skips.count > 0;
    if (args->dense && has_patterns) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.extra_option",
                        "--dense decodes every layer and takes no patterns or skips; see 'espalier "
                        "convert --help'");
    }
    return ESP_OK;
}

static esp_status convert(cli_state *cli, esp_prune_options *options, esp_error *error)
{
    const convert_args *args = cli->args;
    esp_convert_target target;
    TRY(parse_target(args, &target, error));
    TRY(parse_shard_size(args->shard_size, &options->shard_bytes, error));
    layer_report report;
    layer_report_begin(&report, cli, false);
    options->on_layer = layer_report_add;
    options->progress = cli_progress_step;
    options->user = &report;
    options->force = args->force;
    esp_prune_summary summary;
    esp_status status = esp_convert_checkpoint(cli->context, cli->operands[0], args->out, target,
                                               options, &summary, error);
    if (status == ESP_OK) {
        status = layer_report_print(&report, args->out, &summary, error);
    }
    layer_report_free(&report);
    return status;
}

static esp_status run(cli_state *cli, esp_error *error)
{
    const convert_args *args = cli->args;
    TRY(check_args(args, error));
    esp_prune_options options = {0};
    pattern_rules rules;
    esp_status status = parse_patterns(&args->which, &options, &rules, error);
    status = status == ESP_OK ? convert(cli, &options, error) : status;
    pattern_rules_free(&rules);
    return status;
}

#define FIELD(member) offsetof(convert_args, member)
static const cli_option options[] = {
    {.name = "compress",
     .kind = OPTION_FLAG,
     .offset = FIELD(compress),
     .help = "store layers compressed whose zeros fit the pattern already"},
    {.name = "dense",
     .kind = OPTION_FLAG,
     .offset = FIELD(dense),
     .help = "write compressed layers dense, with their zeros"},
    {.name = "to",
     .kind = OPTION_TEXT,
     .offset = FIELD(to),
     .argument = "FORM",
     .help = "write a compressed-tensors folder: sparse-24-bitmask or sparse-bitmask"},
    PATTERN_OPTIONS(convert_args),
    OUT_OPTION(convert_args),
    FOLDER_OPTIONS(convert_args),
    {.name = NULL}};

const cli_command convert_command = {
    .name = "convert",
    .summary = "change the form of a model without pruning it",
    .operands = "MODEL -o FOLDER (--compress -p PATTERN | --dense | --to FORM)",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .args_bytes = sizeof(convert_args),
    .run = run,
    .notes =
        "--compress takes the layers that 'espalier prune' would take and fails (exit code 5), "
        "naming layer and place, when zeros do not fit. --dense makes a folder that other "
        "programs load like any dense model. --to sparse-24-bitmask does the same with 2:4, and "
        "with classifier heads, too, if --pattern-for GLOB=2:4 names them; sparse-bitmask stores "
        "any zeros. MODEL may be of these two forms everywhere."};

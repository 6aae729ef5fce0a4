/* espalier prune: masks the linear layers and writes the compressed folder. */
#include <stddef.h>
#include <stdlib.h>

#include "calibration.h"
#include "cli.h"
#include "layer_table.h"

typedef struct prune_args {
    pattern_args which;
    const char *out, *shard_size;
    int score, search, scope; /* esp_score, esp_search, index into scopes */
    bool regroup, permute, dry_run, force;
    calibration_args calibration;
} prune_args;

/* By the weights alone; NULL where none was asked for. */
static esp_status find_permutation(cli_state *cli, const esp_prune_options *prune,
                                   layer_report *report, esp_permutation **permutation,
                                   esp_error *error)
{
    const prune_args *args = cli->args;
    const esp_permute_options options = {.progress = cli_progress_step, .user = report};
    *permutation = NULL;
    return !args->permute || args->calibration.path != NULL
               ? ESP_OK
               : esp_permutation_search(cli->context, cli->operands[0], prune, &options,
                                        permutation, error);
}

static esp_status prune(cli_state *cli, esp_prune_options *options, esp_error *error)
{
    const prune_args *args = cli->args;
    const char *out = args->dry_run ? NULL : args->out;
    layer_report report;
    esp_permutation *permutation = NULL;
    layer_report_begin(&report, cli, args->dry_run);
    options->on_layer = layer_report_add;
    options->progress = cli_progress_step;
    options->user = &report;
    esp_prune_summary summary;
    esp_status status = find_permutation(cli, options, &report, &permutation, error);
    options->permutation = report.permutation = permutation;
    if (status == ESP_OK && args->calibration.path != NULL) {
        status = prune_calibrated(cli, &args->calibration, out, options,
                                  args->permute ? &permutation : NULL, &report, &summary, error);
    } else if (status == ESP_OK) {
        status =
            esp_prune_checkpoint(cli->context, cli->operands[0], out, options, &summary, error);
    }
    if (status == ESP_OK) {
        status = layer_report_print(&report, out, &summary, error);
    }
    layer_report_free(&report);
    esp_permutation_free(permutation);
    return status;
}

/* Options that only mean something together with --calibrate, or without it. */
static esp_status check_calibration(const prune_args *args, esp_error *error)
{
    const calibration_args *calibration = &args->calibration;
    TRY(calibration_check(calibration, error));
    if (calibration->path != NULL && (args->dry_run || args->score != 0)) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.extra_option",
                        "--calibrate takes no --dry-run, and --method in place of --score");
    }
    return ESP_OK;
}

/* Wanda compares within rows (Sun et al.), all others within the tensor. */
static esp_scope scope_of(const prune_args *args)
{
    bool wanda = args->calibration.path != NULL && args->calibration.method == ESP_METHOD_WANDA;
    bool automatic = args->scope == 0;
    return args->scope == 2 || (automatic && wanda) ? ESP_SCOPE_ROW : ESP_SCOPE_TENSOR;
}

static esp_status run(cli_state *cli, esp_error *error)
{
    const prune_args *args = cli->args;
    if (args->out == NULL && !args->dry_run) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.missing_option",
                        "--out FOLDER must be given, or --dry-run; see 'espalier prune --help'");
    }
    if (args->which.pattern == NULL && args->which.recipe == NULL) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.missing_option",
                        "--pattern PATTERN must be given, for example -p 64:2:8, or --recipe FILE; "
                        "see 'espalier prune --help'");
    }
    TRY(check_calibration(args, error));
    esp_prune_options options = {.mask = {.score = (esp_score)args->score,
                                          .search = (esp_search)args->search,
                                          .scope = scope_of(args),
                                          .regroup = args->regroup},
                                 .dry_run = args->dry_run,
                                 .force = args->force};
    TRY(parse_shard_size(args->shard_size, &options.shard_bytes, error));
    pattern_rules rules;
    esp_status status = parse_patterns(&args->which, &options, &rules, error);
    status = status == ESP_OK ? prune(cli, &options, error) : status;
    pattern_rules_free(&rules);
    return status;
}

static const char *const scores[] = {"abs", "square", NULL};
static const char *const searches[] = {"auto", "greedy", "exact", "swaps", "joint", NULL};
static const char *const scopes[] = {"auto", "tensor", "row", NULL};

#define FIELD(member) offsetof(prune_args, member)
static const cli_option options[] = {
    PATTERN_OPTIONS(prune_args),
    {.name = "out",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .offset = FIELD(out),
     .argument = "FOLDER",
     .help = "folder to make"},
    {.name = "score",
     .kind = OPTION_CHOICE,
     .offset = FIELD(score),
     .argument = "SCORE",
     .help = "what makes a weight worth keeping",
     .fallback = "abs",
     .choices = scores},
    {.name = "search",
     .kind = OPTION_CHOICE,
     .offset = FIELD(search),
     .argument = "HOW",
     .help = "how panels pick columns; auto: exact for M <= 10, swaps above; joint: free panels "
             "exchange columns among their fours and with dropped ones",
     .fallback = "auto",
     .choices = searches},
    {.name = "scope",
     .kind = OPTION_CHOICE,
     .offset = FIELD(scope),
     .argument = "SCOPE",
     .help = "among what the weights of unstructured@S compete; auto: row for Wanda, else tensor",
     .fallback = "auto",
     .choices = scopes},
    {.name = "regroup",
     .kind = OPTION_FLAG,
     .offset = FIELD(regroup),
     .help = "group rows in panels so that these keep more; each weight stores its row order"},
    CALIBRATION_MASKS_OPTIONS(prune_args),
    CALIBRATION_VALUES_OPTIONS(prune_args),
    CALIBRATION_DATA_OPTIONS(prune_args),
    {.name = "permute",
     .kind = OPTION_FLAG,
     .offset = FIELD(permute),
     .help = "reorder channels first, so that panels keep more; costs nothing when run"},
    {.name = "dry-run",
     .letter = 'n',
     .kind = OPTION_FLAG,
     .offset = FIELD(dry_run),
     .help = "show layers and bytes, write nothing"},
    FOLDER_OPTIONS(prune_args),
    {.name = NULL}};

const cli_command prune_command = {
    .name = "prune",
    .summary = "prune the linear layers of a model and write the compressed folder",
    .operands = "MODEL -p PATTERN -o FOLDER",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .args_bytes = sizeof(prune_args),
    .run = run,
    .notes =
        "Linear layers are the rank-2 tensors named *.weight of type F32, F16 or BF16, but not "
        "embeddings and output heads; a layer that would not get smaller stays dense, and so do "
        "classifier heads and poolers, unless --pattern-for names them. V larger "
        "than a layer's rows is clamped to them. GLOB is matched against the whole tensor "
        "name, with or without .weight. The table shows what is stored: the share of zeros, "
        "the share of the sum of squares that is kept, and the natural logarithm of the number "
        "of masks that V:N:M allows. --permute reorders channels where nothing outside the model "
        "sees their order, for the model's architecture must be known; what the unpruned model "
        "computes stays the same, and config.json records the orders. FOLDER appears whole or not "
        "at all.\n"
        "With --calibrate the model runs over PATH layer by layer, each layer reading what the "
        "layers before it, as pruned, make; with --method sparsegpt or --refit the kept weights "
        "change, so that outputs come near to the dense model's. Errors in the table are squared "
        "differences of a layer's outputs as a share of their square. Layers that PATH does not "
        "reach (poolers, heads) stay dense. What was done is recorded in FOLDER/espalier.json."};

/* espalier advise: should a layer be pruned at all, and to what? */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "advise_job.h"
#include "frontier.h"
#include "recipe.h"
#include "sizes.h"
#include "token_counts.h"
#include "tuning_file.h"

#define MAX_POINTS 4096

static const char *const default_patterns[] = {"2:4",     "64:2:5",  "128:2:5", "64:2:8",
                                               "128:2:8", "64:2:16", "128:2:16"};

/* ---- files ---- */

static esp_status write_recipe(const advise_job *job, esp_error *error)
{
    esp_advised_point chosen = esp_advice_chosen(job->advice);
    json_t *layers = json_object(), *json = json_object();
    bool failed = layers == NULL || json == NULL;
    for (int64_t i = 0; !failed && i < esp_advice_layers(job->advice); i++) {
        esp_advised_layer layer = esp_advice_layer(job->advice, i);
        char pattern[ESP_PATTERN_TEXT_MAX];
        esp_pattern_print(&layer.ways[layer.chosen].pattern, pattern);
        failed = json_object_set_new(layers, layer.name, json_string(pattern)) != 0;
    }
    failed =
        failed || json_object_set_new(json, "espalier_recipe", json_integer(1)) != 0 ||
        json_object_set_new(json, "model", json_string(job->model)) != 0 ||
        json_object_set_new(json, "device", json_string(esp_device_identity(job->cli->device))) !=
            0 ||
        json_object_set_new(json, "predicted_speedup", json_real(chosen.speedup)) != 0 ||
        (chosen.whole_speedup > 0 && json_object_set_new(json, "predicted_model_speedup",
                                                         json_real(chosen.whole_speedup)) != 0) ||
        json_object_set_new(json, "pattern", json_string("dense")) != 0 ||
        json_object_set(json, "layers", layers) != 0;
    json_decref(layers);
    if (failed) {
        json_decref(json);
        return cli_fail_memory(error, "a recipe");
    }
    return recipe_write(job->args->recipe, json, error);
}

static esp_status write_files(const advise_job *job, esp_error *error)
{
    if (job->args->recipe != NULL) {
        TRY(write_recipe(job, error));
    }
    if (job->args->figure == NULL) {
        return ESP_OK;
    }
    frontier_view view = {.points = job->points,
                          .count = job->point_count,
                          .chosen = esp_advice_chosen(job->advice),
                          .has_chosen = advise_has_wish(job),
                          .title = job->model,
                          .device = esp_device_identity(job->cli->device),
                          .loss = job->args->calibration.path != NULL
                                      ? "squared error of outputs, share of their square"
                                      : "share of the weights' squares lost"};
    return frontier_write(job->args->figure, &view, error);
}

/* ---- the command ---- */

static esp_status parse(advise_job *job, esp_error *error)
{
    const advise_args *args = job->args;
    const text_list *given = &args->patterns;
    int count = given->count > 0 ? given->count : COUNT(default_patterns), token_count;
    if (count > ADVISE_MAX_PATTERNS) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                        "%d patterns: at most %d can be compared", count, ADVISE_MAX_PATTERNS);
    }
    for (int i = 0; i < count; i++) {
        const char *text = given->count > 0 ? given->items[i] : default_patterns[i];
        TRY(esp_pattern_parse(text, &job->patterns[i], error));
    }
    TRY(parse_token_counts(args->tokens, ESP_ADVISE_MAX_TOKENS, job->tokens, &token_count, error));
    if (args->recipe != NULL && !advise_has_wish(job)) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.missing_option",
                        "--recipe needs a wish: --speedup S, --model-speedup S or --bytes SHARE");
    }
    if (args->model_speedup > 0 && args->layers_only) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.extra_option",
                        "--model-speedup is a wish for the whole model, which --layers-only does "
                        "not look at");
    }
    job->options = (esp_advise_options){.patterns = job->patterns,
                                        .pattern_count = count,
                                        .tokens = job->tokens,
                                        .token_count = token_count,
                                        .speedup = args->speedup,
                                        .stored_share = args->bytes,
                                        .whole_speedup = args->model_speedup,
                                        .whole = !args->layers_only,
                                        .compute = (esp_compute)job->cli->common.compute,
                                        .rounds = (int)args->rounds,
                                        .progress = progress_step,
                                        .user = &job->cli->progress};
    return ESP_OK;
}

static const char *const advise_types[] = {"f16", "bf16", "f32", NULL};

static esp_status check_source(const cli_state *cli, esp_error *error)
{
    const advise_args *args = cli->args;
    bool drawn = args->random_weights != NULL;
    if (drawn == (cli->operand_count > 0)) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                        "expected a MODEL, or --random-weights FOLDER in its place; see 'espalier "
                        "advise --help'");
    }
    if (drawn && args->calibration.path != NULL) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.extra_option",
                        "--calibrate tells what real weights lose; --random-weights have no "
                        "outputs worth keeping");
    }
    return calibration_check(&args->calibration, error);
}

static esp_status open_weights(advise_job *job, esp_error *error)
{
    static const esp_dtype types[] = {ESP_F16, ESP_BF16, ESP_F32}; /* as advise_types has them */
    const advise_args *args = job->args;
    if (args->random_weights == NULL) {
        job->model = job->cli->operands[0];
        return esp_checkpoint_open(job->cli->context, job->model, &job->checkpoint, error);
    }
    const esp_draw_options draw = {.dtype = types[args->type], .seed = 1};
    job->model = args->random_weights;
    return esp_checkpoint_draw(job->cli->device, job->model, &draw, &job->checkpoint, error);
}

static esp_status advise(advise_job *job, esp_error *error)
{
    cli_state *cli = job->cli;
    TRY(check_source(cli, error));
    TRY(parse(job, error));
    TRY(cli_open_device(cli, error));
    TRY(open_weights(job, error));
    if (job->args->calibration.path != NULL) {
        TRY(calibration_load(cli, &job->args->calibration, &job->data, &job->calibration, error));
        job->calibration.refit = true; /* what a mask costs is what cannot be made up for */
        job->options.calibration = &job->calibration;
    }
    TRY(esp_advice_create(cli->device, job->checkpoint, &job->options, &job->advice, error));
    progress_end(&cli->progress);
    job->points = calloc(MAX_POINTS, sizeof *job->points);
    if (job->points == NULL) {
        return cli_fail_memory(error, "the frontier");
    }
    int all = esp_advice_frontier(job->advice, job->points, MAX_POINTS);
    job->point_count = all < MAX_POINTS ? all : MAX_POINTS;
    TRY(write_files(job, error));
    TRY(cli->common.json ? advise_print_json(job, error) : advise_print_text(job, error));
    return tuning_save(cli, error);
}

static esp_status run(cli_state *cli, esp_error *error)
{
    advise_job job = {.cli = cli, .args = cli->args};
    esp_status status = advise(&job, error);
    esp_advice_free(job.advice);
    calibration_data_free(&job.data);
    esp_checkpoint_close(job.checkpoint);
    free(job.points);
    return status;
}

#define FIELD(member) offsetof(advise_args, member)
static const cli_option options[] = {
    {.name = "pattern",
     .letter = 'p',
     .kind = OPTION_LIST,
     .offset = FIELD(patterns),
     .argument = "PATTERN",
     .help = "a candidate; may be given several times (without: 2:4, and V:2:M with V of 64 and "
             "128, M of 5, 8 and 16)"},
    {.name = "tokens",
     .kind = OPTION_TEXT,
     .offset = FIELD(tokens),
     .argument = "LIST",
     .help = "token counts that matter, each as much as the others, at most 8",
     .fallback = "1,512"},
    {.name = "speedup",
     .letter = 's',
     .kind = OPTION_NUMBER,
     .offset = FIELD(speedup),
     .argument = "S",
     .help = "advise a mix that makes all linear layers together S times as fast",
     .least = 0,
     .most = 1000},
    {.name = "model-speedup",
     .kind = OPTION_NUMBER,
     .offset = FIELD(model_speedup),
     .argument = "S",
     .help = "or one that makes the whole model S times as fast",
     .least = 0,
     .most = 1000},
    {.name = "bytes",
     .kind = OPTION_NUMBER,
     .offset = FIELD(bytes),
     .argument = "SHARE",
     .help = "or one that stores at most this share of their bytes",
     .least = 0,
     .most = 1},
    {.name = "recipe",
     .kind = OPTION_TEXT,
     .offset = FIELD(recipe),
     .argument = "FILE",
     .help = "write the mix for 'espalier prune --recipe'"},
    {.name = "figure",
     .kind = OPTION_TEXT,
     .offset = FIELD(figure),
     .argument = "FILE.svg",
     .help = "draw speed-up against loss of the best mixes"},
    {.name = "rounds",
     .letter = 'r',
     .kind = OPTION_INTEGER,
     .offset = FIELD(rounds),
     .argument = "N",
     .help = "interleaved rounds of a measurement, of which the median counts",
     .fallback = "9",
     .least = 1,
     .most = 10000},
    {.name = "layers-only",
     .kind = OPTION_FLAG,
     .offset = FIELD(layers_only),
     .help = "do not time the whole dense model"},
    {.name = "random-weights",
     .kind = OPTION_TEXT,
     .offset = FIELD(random_weights),
     .argument = "FOLDER",
     .help = "a model of the shape of FOLDER/config.json, its weights drawn, in place of MODEL"},
    {.name = "type",
     .kind = OPTION_CHOICE,
     .offset = FIELD(type),
     .argument = "TYPE",
     .help = "of drawn weights",
     .fallback = "f16",
     .choices = advise_types},
    CALIBRATION_MASKS_OPTIONS(advise_args),
    CALIBRATION_DATA_OPTIONS(advise_args),
    {.name = NULL}};

const cli_command advise_command = {
    .name = "advise",
    .summary = "measure what pruning gains on this device, against what it loses",
    .operands = "MODEL",
    .least_operands = 0,
    .most_operands = 1,
    .options = options,
    .args_bytes = sizeof(advise_args),
    .run = run,
    .notes =
        "Every distinct shape of the model's linear layers is measured with every pattern at all "
        "token counts, sparse and dense kernels in turn; times are kept in the tuning file. A way "
        "that is slower than dense counts as dense, which is what runs. The mix gives each layer "
        "the pattern, dense included, with which all together lose least while the mean of their "
        "time over dense's, over token counts, stays within 1 / S.\n"
        "The whole dense model is timed at every token count, too: one token behind 128 others, a "
        "prompt of more (an encoder's texts of up to 128, whole images). What the linear layers "
        "do not take of it is taken to stay, which predicts the model with any mix; 'espalier "
        "bench --baseline MODEL PRUNED' measures it.\n"
        "One pattern for all layers is told, too, and with a wish the paper's two-phase sifting: "
        "of each V the smallest M that fulfils it, of these the one that allows most masks."};

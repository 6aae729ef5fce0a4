/* espalier advise: should a layer be pruned at all, and to what? */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "calibration.h"
#include "frontier.h"
#include "output.h"
#include "recipe.h"
#include "sizes.h"
#include "token_counts.h"
#include "tuning_file.h"

#define MAX_PATTERNS 32
#define MAX_POINTS 4096
#define SHOWN_POINTS 12

typedef struct advise_args {
    text_list patterns;
    const char *tokens, *recipe, *figure;
    double speedup, bytes;
    int64_t rounds;
    calibration_args calibration;
} advise_args;

typedef struct advise_job {
    cli_state *cli;
    const advise_args *args;
    esp_checkpoint *checkpoint;
    esp_pattern patterns[MAX_PATTERNS];
    int64_t tokens[ESP_ADVISE_MAX_TOKENS];
    esp_advise_options options;
    calibration_data data;
    esp_calibration_options calibration;
    esp_advice *advice;
    esp_advised_point *points;
    int point_count;
} advise_job;

static const char *const default_patterns[] = {"2:4",     "64:2:5",  "128:2:5", "64:2:8",
                                               "128:2:8", "64:2:16", "128:2:16"};

/* ---- distinct layers: those of one shape and type have the same ways but their losses ---- */

static bool alike(const esp_advised_layer *a, const esp_advised_layer *b)
{
    return a->out_features == b->out_features && a->in_features == b->in_features &&
           a->dtype == b->dtype;
}

/* Whether a layer is the first of its shape. */
static bool is_first(const advise_job *job, int64_t index)
{
    esp_advised_layer own = esp_advice_layer(job->advice, index);
    for (int64_t i = 0; i < index; i++) {
        esp_advised_layer other = esp_advice_layer(job->advice, i);
        if (alike(&own, &other)) {
            return false;
        }
    }
    return true;
}

typedef struct shape_facts {
    int64_t layers;
    double least, mean, most; /* error of a way */
    int64_t chosen;           /* layers that take it */
} shape_facts;

static shape_facts facts_of(const advise_job *job, const esp_advised_layer *first, int way)
{
    shape_facts facts = {.least = INFINITY};
    for (int64_t i = 0; i < esp_advice_layers(job->advice); i++) {
        esp_advised_layer layer = esp_advice_layer(job->advice, i);
        if (!alike(first, &layer)) {
            continue;
        }
        double error = layer.ways[way].error;
        facts.layers++;
        facts.mean += error;
        facts.least = fmin(facts.least, error);
        facts.most = fmax(facts.most, error);
        facts.chosen += layer.chosen == way;
    }
    facts.mean /= (double)facts.layers;
    return facts;
}

static bool has_wish(const advise_job *job)
{
    return job->args->speedup > 0 || job->args->bytes > 0;
}

/* ---- as text ---- */

static void add_way(const advise_job *job, cli_table *table, const esp_advised_layer *layer,
                    int way, bool first)
{
    const esp_advised_way *own = &layer->ways[way];
    char pattern[ESP_PATTERN_TEXT_MAX], number[SIZE_TEXT_MAX];
    shape_facts facts = facts_of(job, layer, way);
    esp_pattern_print(&own->pattern, pattern);
    if (first) {
        table_cell(table, "%lldx%lld", (long long)layer->out_features,
                   (long long)layer->in_features);
        table_cell(table, "%lld", (long long)facts.layers);
    } else {
        table_cell(table, "%s", "");
        table_cell(table, "%s", "");
    }
    table_cell(table, "%s", pattern);
    for (int t = 0; t < job->options.token_count; t++) {
        if (!own->possible) {
            table_cell(table, "-");
        } else if (way == 0) {
            table_cell(table, "%s us", size_number(own->us[t], number));
        } else {
            table_cell(table, "%.2fx%s", own->gain[t], own->gain[t] <= 1 ? " (dense)" : "");
        }
    }
    table_cell(table, "%.3f", (double)own->stored_bytes / (double)layer->ways[0].stored_bytes);
    table_cell(table, "%.3f", facts.mean);
    table_cell(table, "%.3f-%.3f", facts.least, facts.most);
    if (!own->possible) {
        table_cell(table, "%s", own->why_not);
    } else if (has_wish(job) && facts.chosen > 0) {
        table_cell(table, "%lld layers", (long long)facts.chosen);
    } else {
        table_cell(table, "%s", "");
    }
}

static esp_status print_ways(const advise_job *job, esp_error *error)
{
    char counts[ESP_ADVISE_MAX_TOKENS][32];
    const char *heads[TABLE_MAX_COLUMNS] = {"<shape", ">layers", "<pattern"};
    int columns = 3;
    for (int t = 0; t < job->options.token_count; t++) {
        snprintf(counts[t], sizeof counts[t], ">%lld tokens", (long long)job->tokens[t]);
        heads[columns++] = counts[t];
    }
    heads[columns++] = ">bytes";
    heads[columns++] = ">loss";
    heads[columns++] = "<of the layers";
    heads[columns++] = has_wish(job) ? "<advised" : "<";
    cli_table table;
    table_begin(&table, columns, heads);
    for (int64_t i = 0; i < esp_advice_layers(job->advice); i++) {
        esp_advised_layer layer = esp_advice_layer(job->advice, i);
        for (int way = 0; is_first(job, i) && way <= job->options.pattern_count; way++) {
            add_way(job, &table, &layer, way, way == 0);
        }
    }
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    return status;
}

static esp_status print_frontier(const advise_job *job, esp_error *error)
{
    static const char *const heads[] = {">speed-up", ">bytes", ">loss"};
    cli_table table;
    table_begin(&table, 3, heads);
    int shown = 0;
    for (int i = 0; i < job->point_count; i++) {
        bool last = i == job->point_count - 1;
        /* Points that are spread over the speed-ups, both ends included. */
        double first = job->points[0].speedup, end = job->points[job->point_count - 1].speedup;
        double due = first + (end - first) * shown / (SHOWN_POINTS - 1);
        if (job->points[i].speedup >= due || last) {
            table_cell(&table, "%.3fx", job->points[i].speedup);
            table_cell(&table, "%.3f", job->points[i].stored_share);
            table_cell(&table, "%.4f", job->points[i].error);
            shown++;
        }
    }
    printf("\nthe best mixes of these, of all linear layers:\n");
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    return status;
}

static esp_status print_text(const advise_job *job, esp_error *error)
{
    printf("%s on %s; times: the faster of sparse and dense in the same rounds, a gain is dense "
           "over sparse\n\n",
           job->cli->operands[0], esp_device_name(job->cli->device));
    TRY(print_ways(job, error));
    TRY(print_frontier(job, error));
    if (has_wish(job)) {
        esp_advised_point chosen = esp_advice_chosen(job->advice);
        printf("\nadvised: linear layers %.2fx as fast, %.3f of their bytes, loss %.4f\n",
               chosen.speedup, chosen.stored_share, chosen.error);
    } else {
        printf("\nsay --speedup S or --bytes SHARE for a mix, --recipe FILE to keep it for "
               "'espalier prune --recipe'\n");
    }
    if (job->args->calibration.path != NULL) {
        printf("loss: squared error of a layer's outputs as a share of their square, on %s, pruned "
               "by %s with refit; what it costs the model, 'espalier eval' tells.\n",
               job->args->calibration.path, calibration_methods[job->args->calibration.method]);
    } else {
        printf("loss: the share of the weights' sum of squares that the mask drops; --calibrate "
               "tells of outputs, and what it costs the model, 'espalier eval'.\n");
    }
    return ESP_OK;
}

/* ---- as JSON ---- */

static cli_record point_json(const esp_advised_point *point)
{
    cli_record record = record_object();
    record_real(&record, "speedup", point->speedup);
    record_real(&record, "stored_share", point->stored_share);
    record_real(&record, "loss", point->error);
    return record;
}

static cli_record way_json(const advise_job *job, const esp_advised_way *way)
{
    char pattern[ESP_PATTERN_TEXT_MAX];
    cli_record record = record_object(), times = record_list();
    esp_pattern_print(&way->pattern, pattern);
    record_text(&record, "pattern", pattern);
    record_text(&record, "why_not", way->possible ? NULL : way->why_not);
    record_int(&record, "stored_bytes", (int64_t)way->stored_bytes);
    record_real(&record, "loss", way->possible ? way->error : (double)NAN);
    record_bool(&record, "calibrated", way->calibrated);
    for (int t = 0; way->possible && t < job->options.token_count; t++) {
        cli_record time = record_object();
        record_int(&time, "tokens", job->tokens[t]);
        record_real(&time, "us", way->us[t]);
        record_real(&time, "gain", way->gain[t]);
        record_text(&time, "kernel", way->kernels[t]);
        record_add(&times, time);
    }
    record_child(&record, "times", times);
    return record;
}

static esp_status print_json(const advise_job *job, esp_error *error)
{
    cli_record record = record_begin("advise"), layers = record_list(), frontier = record_list();
    record_text(&record, "model", job->cli->operands[0]);
    record_text(&record, "device", esp_device_name(job->cli->device));
    record_text(&record, "identity", esp_device_identity(job->cli->device));
    for (int64_t i = 0; i < esp_advice_layers(job->advice); i++) {
        esp_advised_layer layer = esp_advice_layer(job->advice, i);
        cli_record own = record_object(), ways = record_list();
        char pattern[ESP_PATTERN_TEXT_MAX];
        esp_pattern_print(&layer.ways[layer.chosen].pattern, pattern);
        record_text(&own, "name", layer.name);
        record_int(&own, "out", layer.out_features);
        record_int(&own, "in", layer.in_features);
        record_text(&own, "advised", has_wish(job) ? pattern : NULL);
        for (int way = 0; way <= job->options.pattern_count; way++) {
            record_add(&ways, way_json(job, &layer.ways[way]));
        }
        record_child(&own, "ways", ways);
        record_add(&layers, own);
    }
    record_child(&record, "layers", layers);
    for (int i = 0; i < job->point_count; i++) {
        record_add(&frontier, point_json(&job->points[i]));
    }
    record_child(&record, "frontier", frontier);
    if (has_wish(job)) {
        esp_advised_point chosen = esp_advice_chosen(job->advice);
        record_child(&record, "advised", point_json(&chosen));
    }
    return record_print(&record, error);
}

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
    failed = failed || json_object_set_new(json, "espalier_recipe", json_integer(1)) != 0 ||
             json_object_set_new(json, "model", json_string(job->cli->operands[0])) != 0 ||
             json_object_set_new(json, "device",
                                 json_string(esp_device_identity(job->cli->device))) != 0 ||
             json_object_set_new(json, "predicted_speedup", json_real(chosen.speedup)) != 0 ||
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
    char title[512];
    snprintf(title, sizeof title, "%s on %s", job->cli->operands[0],
             esp_device_identity(job->cli->device));
    frontier_view view = {.points = job->points,
                          .count = job->point_count,
                          .chosen = esp_advice_chosen(job->advice),
                          .has_chosen = has_wish(job),
                          .title = title};
    return frontier_write(job->args->figure, &view, error);
}

/* ---- the command ---- */

static bool on_progress(void *user, const char *what, double done, double total, const char *unit)
{
    return progress_step(user, what, done, total, unit);
}

static esp_status parse(advise_job *job, esp_error *error)
{
    const advise_args *args = job->args;
    const text_list *given = &args->patterns;
    int count = given->count > 0 ? given->count : COUNT(default_patterns), token_count;
    if (count > MAX_PATTERNS) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                        "%d patterns: at most %d can be compared", count, MAX_PATTERNS);
    }
    for (int i = 0; i < count; i++) {
        const char *text = given->count > 0 ? given->items[i] : default_patterns[i];
        TRY(esp_pattern_parse(text, &job->patterns[i], error));
    }
    TRY(parse_token_counts(args->tokens, ESP_ADVISE_MAX_TOKENS, job->tokens, &token_count, error));
    if (args->recipe != NULL && !has_wish(job)) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.missing_option",
                        "--recipe needs a wish: --speedup S or --bytes SHARE");
    }
    job->options = (esp_advise_options){.patterns = job->patterns,
                                        .pattern_count = count,
                                        .tokens = job->tokens,
                                        .token_count = token_count,
                                        .speedup = args->speedup,
                                        .stored_share = args->bytes,
                                        .compute = (esp_compute)job->cli->common.compute,
                                        .rounds = (int)args->rounds,
                                        .progress = on_progress,
                                        .user = &job->cli->progress};
    return ESP_OK;
}

static esp_status advise(advise_job *job, esp_error *error)
{
    cli_state *cli = job->cli;
    TRY(parse(job, error));
    TRY(cli_open_device(cli, error));
    TRY(esp_checkpoint_open(cli->context, cli->operands[0], &job->checkpoint, error));
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
    TRY(cli->common.json ? print_json(job, error) : print_text(job, error));
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
    CALIBRATION_OPTIONS(advise_args),
    {.name = NULL}};

const cli_command advise_command = {
    .name = "advise",
    .summary = "measure what pruning gains on this device, against what it loses",
    .operands = "MODEL",
    .least_operands = 1,
    .most_operands = 1,
    .options = options,
    .args_bytes = sizeof(advise_args),
    .run = run,
    .notes =
        "Every distinct shape of the model's linear layers is measured with every pattern at all "
        "token counts, sparse and dense kernels in turn; times are kept in the tuning file. A way "
        "that is slower than dense counts as dense, which is what runs. The mix gives each layer "
        "the pattern, dense included, with which all together lose least while the mean of their "
        "time over dense's, over token counts, stays within 1 / S."};

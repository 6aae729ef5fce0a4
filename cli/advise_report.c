/* What `espalier advise` found, as tables and as JSON. */
#include <math.h>
#include <string.h>

#include "advise_job.h"
#include "sizes.h"

#define SHOWN_POINTS 12

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
    } else if (advise_has_wish(job) && facts.chosen > 0) {
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
    heads[columns++] = advise_has_wish(job) ? "<advised" : "<";
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
    static const char *const heads[] = {">speed-up", ">bytes", ">loss", ">whole model"};
    bool whole = job->points[0].whole_speedup > 0;
    cli_table table;
    table_begin(&table, whole ? 4 : 3, heads);
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
            if (whole) {
                table_cell(&table, "%.3fx", job->points[i].whole_speedup);
            }
            shown++;
        }
    }
    printf("\nthe best mixes of these, of all linear layers:\n");
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    return status;
}

/* ---- one pattern for all ---- */

static double weights_of(const advise_job *job)
{
    double weights = 0;
    for (int64_t i = 0; i < esp_advice_layers(job->advice); i++) {
        esp_advised_layer layer = esp_advice_layer(job->advice, i);
        weights += (double)layer.out_features * (double)layer.in_features;
    }
    return weights;
}

static void add_uniform(const advise_job *job, cli_table *table, int index, double weights)
{
    esp_advised_uniform uniform = esp_advice_uniform(job->advice, index);
    char pattern[ESP_PATTERN_TEXT_MAX];
    esp_pattern_print(&uniform.pattern, pattern);
    table_cell(table, "%s", pattern);
    table_cell(table, "%.3fx", uniform.point.speedup);
    table_cell(table, "%.3f", uniform.point.stored_share);
    table_cell(table, "%.4f", uniform.point.error);
    if (isnan(uniform.log_mask_diversity)) {
        table_cell(table, "-");
    } else {
        table_cell(table, "%.4f", uniform.log_mask_diversity / weights);
    }
    if (uniform.point.whole_speedup > 0) { /* of all or of none */
        table_cell(table, "%.3fx", uniform.point.whole_speedup);
    }
    table_cell(table, "%s",
               uniform.sifted     ? "sifted: of these the most masks"
               : uniform.smallest ? "the smallest M of its V that does"
               : uniform.reaches  ? "fulfils the wish"
                                  : "");
}

static esp_status print_uniform(const advise_job *job, esp_error *error)
{
    const char *heads[] = {"<pattern",         ">speed-up", ">bytes", ">loss",
                           ">ln masks/weight", "<",         "<"};
    int columns = 6;
    if (job->points[0].whole_speedup > 0) {
        heads[5] = ">whole model";
        columns++;
    }
    cli_table table;
    table_begin(&table, columns, heads);
    double weights = weights_of(job);
    for (int i = 0; i < job->options.pattern_count; i++) {
        add_uniform(job, &table, i, weights);
    }
    printf("\none pattern for all layers that can have it:\n");
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    return status;
}

/* ---- the whole model ---- */

static void add_whole(const advise_job *job, cli_table *table, const esp_advised_whole *whole)
{
    char number[SIZE_TEXT_MAX];
    table_cell(table, "%lld", (long long)whole->tokens);
    if (whole->why_not[0] != '\0') {
        for (int i = 0; i < (advise_has_wish(job) ? 5 : 3); i++) {
            table_cell(table, "-");
        }
        table_cell(table, "%s", whole->why_not);
        return;
    }
    table_cell(table, "%s", size_number(whole->dense_us, number));
    table_cell(table, "%s", size_number(whole->linear_us, number));
    table_cell(table, "%s", size_number(whole->other_us, number));
    if (advise_has_wish(job)) {
        table_cell(table, "%s", size_number(whole->advised_us, number));
        table_cell(table, "%.2fx", whole->dense_us / whole->advised_us);
    }
    table_cell(table, "%s", "");
}

static esp_status print_whole(const advise_job *job, esp_error *error)
{
    const char *heads[TABLE_MAX_COLUMNS] = {">tokens", ">dense us", ">its linear layers",
                                            ">all else"};
    int columns = 4;
    if (advise_has_wish(job)) {
        heads[columns++] = ">advised us";
        heads[columns++] = ">gain";
    }
    heads[columns++] = "<";
    cli_table table;
    table_begin(&table, columns, heads);
    for (int t = 0; t < job->options.token_count; t++) {
        esp_advised_whole whole = esp_advice_whole(job->advice, t);
        add_whole(job, &table, &whole);
    }
    printf("\nthe whole model, dense as measured%s:\n",
           advise_has_wish(job) ? " and as advised, predicted" : "");
    esp_status status = table_print(&table, stdout, error);
    table_free(&table);
    return status;
}

static void print_advised(const advise_job *job)
{
    esp_advised_point chosen = esp_advice_chosen(job->advice), dense = job->points[0];
    char own[SIZE_TEXT_MAX], all[SIZE_TEXT_MAX];
    int64_t kept = 0, count = esp_advice_layers(job->advice);
    for (int64_t i = 0; i < count; i++) {
        kept += esp_advice_layer(job->advice, i).chosen == 0;
    }
    printf("\nadvised: linear layers %.2fx as fast, %.3f of their bytes, loss %.4f; %lld of %lld "
           "stay dense; the model %s of %s",
           chosen.speedup, chosen.stored_share, chosen.error, (long long)kept, (long long)count,
           size_bytes((double)chosen.model_bytes, own), size_bytes((double)dense.model_bytes, all));
    if (chosen.whole_speedup > 0) {
        printf(", predicted %.2fx as fast as a whole", chosen.whole_speedup);
    }
    printf("\n");
}

esp_status advise_print_text(const advise_job *job, esp_error *error)
{
    printf("%s on %s; times: the faster of sparse and dense in the same rounds, a gain is dense "
           "over sparse\n\n",
           job->model, esp_device_name(job->cli->device));
    TRY(print_ways(job, error));
    TRY(print_uniform(job, error));
    TRY(print_frontier(job, error));
    if (job->options.whole) {
        TRY(print_whole(job, error));
    }
    if (advise_has_wish(job)) {
        print_advised(job);
    } else {
        printf("\nsay --speedup S, --model-speedup S or --bytes SHARE for a mix, --recipe FILE to "
               "keep it for 'espalier prune --recipe'\n");
    }
    if (job->args->calibration.path != NULL) {
        printf("loss: squared error of a layer's outputs as a share of their square, on %s, pruned "
               "by %s%s with refit; what it costs the model, 'espalier eval' tells.\n",
               job->args->calibration.path, calibration_methods[job->args->calibration.method],
               job->args->calibration.gradual ? " in steps" : "");
    } else if (job->args->random_weights != NULL) {
        printf("loss: the share of the sum of squares of random weights that the mask drops; real "
               "weights lose less.\n");
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
    record_real(&record, "model_speedup",
                point->whole_speedup > 0 ? point->whole_speedup : (double)NAN);
    record_int(&record, "model_bytes", (int64_t)point->model_bytes);
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

static cli_record uniform_json(const esp_advised_uniform *uniform)
{
    char pattern[ESP_PATTERN_TEXT_MAX];
    cli_record record = point_json(&uniform->point);
    esp_pattern_print(&uniform->pattern, pattern);
    record_text(&record, "pattern", pattern);
    record_real(&record, "log_mask_diversity", uniform->log_mask_diversity);
    record_bool(&record, "reaches", uniform->reaches);
    record_bool(&record, "smallest_m", uniform->smallest);
    record_bool(&record, "sifted", uniform->sifted);
    return record;
}

static cli_record whole_json(const advise_job *job, const esp_advised_whole *whole)
{
    cli_record record = record_object();
    bool known = whole->why_not[0] == '\0', advised = known && advise_has_wish(job);
    record_int(&record, "tokens", whole->tokens);
    record_text(&record, "why_not", known ? NULL : whole->why_not);
    record_real(&record, "dense_us", known ? whole->dense_us : (double)NAN);
    record_real(&record, "linear_us", known ? whole->linear_us : (double)NAN);
    record_real(&record, "other_us", known ? whole->other_us : (double)NAN);
    record_real(&record, "advised_us", advised ? whole->advised_us : (double)NAN);
    record_real(&record, "gain", advised ? whole->dense_us / whole->advised_us : (double)NAN);
    return record;
}

esp_status advise_print_json(const advise_job *job, esp_error *error)
{
    cli_record record = record_begin("advise"), layers = record_list(), frontier = record_list();
    record_text(&record, "model", job->model);
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
        record_text(&own, "advised", advise_has_wish(job) ? pattern : NULL);
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
    cli_record uniform = record_list();
    for (int i = 0; i < job->options.pattern_count; i++) {
        esp_advised_uniform own = esp_advice_uniform(job->advice, i);
        record_add(&uniform, uniform_json(&own));
    }
    record_child(&record, "uniform", uniform);
    cli_record whole = record_list();
    for (int t = 0; t < job->options.token_count && job->options.whole; t++) {
        esp_advised_whole own = esp_advice_whole(job->advice, t);
        record_add(&whole, whole_json(job, &own));
    }
    record_child(&record, "whole", whole);
    record_bool(&record, "random_weights", job->args->random_weights != NULL);
    if (advise_has_wish(job)) {
        esp_advised_point chosen = esp_advice_chosen(job->advice);
        record_child(&record, "advised", point_json(&chosen));
    }
    return record_print(&record, error);
}

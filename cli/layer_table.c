#include "layer_table.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sizes.h"

/* ---- patterns ---- */

/* GLOB=PATTERN; the last '=' separates. The glob is copied behind the rules. */
static esp_status parse_rule(const char *text, char *copy, esp_pattern_rule *rule, esp_error *error)
{
    const char *equals = strrchr(text, '=');
    if (equals == NULL || equals == text) {
        return cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                        "--pattern-for '%s': GLOB=PATTERN was expected, for example "
                        "'*.mlp.*=64:2:8'",
                        text);
    }
    memcpy(copy, text, (size_t)(equals - text));
    copy[equals - text] = '\0';
    rule->glob = copy;
    return esp_pattern_parse(equals + 1, &rule->pattern, error);
}

static esp_status take_recipe(const pattern_args *args, esp_prune_options *options,
                              pattern_rules *rules, esp_error *error)
{
    if (args->recipe == NULL) {
        return ESP_OK;
    }
    TRY(recipe_load(args->recipe, &rules->recipe, error));
    options->pattern = rules->recipe.pattern;
    return ESP_OK;
}

esp_status parse_patterns(const pattern_args *args, esp_prune_options *options,
                          pattern_rules *rules, esp_error *error)
{
    *rules = (pattern_rules){0};
    TRY(take_recipe(args, options, rules, error));
    int own = args->rules.count, count = own + rules->recipe.count;
    size_t bytes = (size_t)count * sizeof *rules->rules, text_bytes = 1;
    for (int i = 0; i < own; i++) {
        text_bytes += strlen(args->rules.items[i]) + 1;
    }
    rules->rules = calloc(1, bytes + text_bytes);
    if (rules->rules == NULL) {
        return cli_fail_memory(error, "pattern rules");
    }
    if (args->pattern != NULL) {
        TRY(esp_pattern_parse(args->pattern, &options->pattern, error));
    }
    char *copy = (char *)rules->rules + bytes;
    for (int i = 0; i < own; i++) {
        TRY(parse_rule(args->rules.items[i], copy, &rules->rules[i], error));
        copy += strlen(args->rules.items[i]) + 1;
    }
    for (int i = own; i < count; i++) {
        rules->rules[i] = rules->recipe.rules[i - own];
    }
    options->rules = rules->rules;
    options->rule_count = count;
    options->skips = args->skips.items;
    options->skip_count = args->skips.count;
    return ESP_OK;
}

void pattern_rules_free(pattern_rules *rules)
{
    free(rules->rules);
    recipe_free(&rules->recipe);
}

esp_status parse_shard_size(const char *text, uint64_t *bytes, esp_error *error)
{
    *bytes = 0;
    return text == NULL || size_parse(text, bytes)
               ? ESP_OK
               : cli_fail(error, ESP_BAD_ARGUMENT, "usage.bad_value",
                          "--shard-size '%s': a number and a unit were expected, for example 5GB, "
                          "500MB or 2GiB",
                          text);
}

/* ---- rows ---- */

void layer_report_begin(layer_report *report, cli_state *cli, bool dry_run)
{
    static const char *const heads[] = {"<layer",    ">shape",       "<type",     "<pattern",
                                        ">sparsity", ">energy kept", ">ln masks", ">bytes before",
                                        ">after",    "<note"};
    *report = (layer_report){.cli = cli, .layers = record_list(), .dry_run = dry_run};
    table_begin(&report->table, COUNT(heads), heads);
}

static void real_cell(cli_table *table, bool known, const char *format, double value)
{
    char text[64] = "-";
    if (known && isfinite(value)) {
        snprintf(text, sizeof text, strcmp(format, "6") == 0 ? "%.6g" : "%.4f", value);
    }
    table_cell(table, "%s", text);
}

static void add_row(layer_report *report, const esp_layer_report *layer, const char *pattern)
{
    cli_table *table = &report->table;
    bool masked = layer->pruned && !report->dry_run;
    int64_t shape[] = {layer->out_features, layer->in_features};
    char shape_text[SHAPE_TEXT_MAX];
    table_cell(table, "%s", layer->name);
    table_cell(table, "%s", size_shape(2, shape, shape_text));
    table_cell(table, "%s", esp_dtype_short_name(layer->dtype));
    table_cell(table, "%s", pattern);
    real_cell(table, masked, "4", layer->mask.sparsity);
    real_cell(table, masked, "4", layer->mask.retained_energy);
    real_cell(table, masked, "6", layer->mask.log_mask_diversity);
    table_cell(table, "%zu", layer->dense_bytes);
    table_cell(table, "%zu", layer->stored_bytes);
    table_cell(table, "%s", layer->note);
}

static void add_json(layer_report *report, const esp_layer_report *layer, const char *pattern)
{
    cli_record record = record_object();
    bool masked = layer->pruned && !report->dry_run;
    record_text(&record, "name", layer->name);
    record_bool(&record, "linear", layer->out_features > 0);
    record_int(&record, "out", layer->out_features);
    record_int(&record, "in", layer->in_features);
    record_text(&record, "dtype", esp_dtype_name(layer->dtype));
    record_bool(&record, "pruned", layer->pruned);
    record_text(&record, "pattern", pattern);
    record_text(&record, "note", layer->note);
    record_int(&record, "dense_bytes", (int64_t)layer->dense_bytes);
    record_int(&record, "stored_bytes", (int64_t)layer->stored_bytes);
    record_real(&record, "sparsity", masked ? layer->mask.sparsity : (double)NAN);
    record_real(&record, "retained_energy", masked ? layer->mask.retained_energy : (double)NAN);
    record_real(&record, "log_mask_diversity",
                masked ? layer->mask.log_mask_diversity : (double)NAN);
    record_add(&report->layers, record);
}

void layer_report_add(void *user, const esp_layer_report *layer)
{
    layer_report *report = user;
    char pattern[ESP_PATTERN_TEXT_MAX];
    esp_pattern_print(&layer->pattern, pattern);
    if (report->cli->common.json) {
        add_json(report, layer, pattern);
    } else if (layer->out_features > 0) {
        add_row(report, layer, pattern);
    } else {
        report->other_tensors++;
        report->other_bytes += layer->stored_bytes;
    }
}

/* ---- totals ---- */

static void print_permutation(const esp_permutation *permutation)
{
    esp_permutation_summary summary;
    esp_permutation_get_summary(permutation, &summary);
    printf("permutation: %lld channels in %d of %d orders moved; kept score %.4f -> %.4f\n",
           (long long)summary.moved_channels, summary.moved_orders, summary.orders,
           summary.kept_before, summary.kept_after);
    if (summary.judged_layers > 0) {
        printf(
            "permutation: error of %lld pruned layers on the dense model's inputs %.4f -> %.4f\n",
            (long long)summary.judged_layers, summary.error_before, summary.error_after);
    }
}

static cli_record permutation_json(const esp_permutation *permutation)
{
    esp_permutation_summary summary;
    cli_record record = record_object();
    esp_permutation_get_summary(permutation, &summary);
    record_int(&record, "orders", summary.orders);
    record_int(&record, "moved_orders", summary.moved_orders);
    record_int(&record, "moved_channels", summary.moved_channels);
    record_real(&record, "kept_before", summary.kept_before);
    record_real(&record, "kept_after", summary.kept_after);
    if (summary.judged_layers > 0) {
        record_real(&record, "error_before", summary.error_before);
        record_real(&record, "error_after", summary.error_after);
    }
    return record;
}

static double ratio(size_t part, size_t whole)
{
    return whole > 0 ? (double)part / (double)whole : 1.0;
}

static void print_totals(const layer_report *report, const char *out,
                         const esp_prune_summary *summary)
{
    char bytes[SIZE_TEXT_MAX], rate[SIZE_TEXT_MAX];
    printf("\nand %lld other tensors (%s) that stay as they are\n",
           (long long)report->other_tensors, size_bytes((double)report->other_bytes, bytes));
    printf("%d of %d linear layers change: %zu -> %zu bytes, ratio %.4f\n", summary->pruned_layers,
           summary->layers, summary->pruned_source_bytes, summary->pruned_stored_bytes,
           ratio(summary->pruned_stored_bytes, summary->pruned_source_bytes));
    printf("all tensors: %zu -> %zu bytes, ratio %.4f\n", summary->source_bytes,
           summary->stored_bytes, ratio(summary->stored_bytes, summary->source_bytes));
    if (report->permutation != NULL) {
        print_permutation(report->permutation);
    }
    if (summary->mask_seconds > 0) {
        printf("masks: %.3f s, %s weights/s on %d threads; all: %.3f s\n", summary->mask_seconds,
               size_count((double)summary->pruned_weights / summary->mask_seconds, rate),
               esp_context_threads(report->cli->context), summary->total_seconds);
    }
    fputs(report->calibration_text, stdout);
    if (out != NULL) {
        printf("written: %s\n", out);
    } else {
        printf("dry run: nothing was written\n");
    }
}

static esp_status print_json(layer_report *report, const char *out,
                             const esp_prune_summary *summary, esp_error *error)
{
    cli_record record = record_begin(report->cli->command->name);
    record_text(&record, "model", report->cli->operands[0]);
    record_text(&record, "out", out);
    record_bool(&record, "dry_run", report->dry_run);
    record_int(&record, "layer_count", summary->layers);
    record_int(&record, "pruned_layers", summary->pruned_layers);
    record_int(&record, "pruned_weights", summary->pruned_weights);
    record_int(&record, "source_bytes", (int64_t)summary->source_bytes);
    record_int(&record, "stored_bytes", (int64_t)summary->stored_bytes);
    record_int(&record, "pruned_source_bytes", (int64_t)summary->pruned_source_bytes);
    record_int(&record, "pruned_stored_bytes", (int64_t)summary->pruned_stored_bytes);
    record_real(&record, "mask_seconds", summary->mask_seconds);
    record_real(&record, "total_seconds", summary->total_seconds);
    record_real(&record, "weights_per_s",
                summary->mask_seconds > 0 ? (double)summary->pruned_weights / summary->mask_seconds
                                          : (double)NAN);
    record_int(&record, "threads", esp_context_threads(report->cli->context));
    if (report->calibration.json != NULL) {
        record_child(&record, "calibration", report->calibration);
        report->calibration = (cli_record){0};
    }
    if (report->permutation != NULL) {
        record_child(&record, "permutation", permutation_json(report->permutation));
    }
    record_child(&record, "layers", report->layers);
    report->layers = (cli_record){0};
    return record_print(&record, error);
}

esp_status layer_report_print(layer_report *report, const char *out,
                              const esp_prune_summary *summary, esp_error *error)
{
    progress_end(&report->cli->progress);
    if (report->cli->common.json) {
        return print_json(report, out, summary, error);
    }
    TRY(table_print(&report->table, stdout, error));
    print_totals(report, out, summary);
    return ESP_OK;
}

void layer_report_free(layer_report *report)
{
    table_free(&report->table);
    record_free(&report->layers);
    record_free(&report->calibration);
}

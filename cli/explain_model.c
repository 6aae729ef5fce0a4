/* A model: which of its sparse layers run dense at a token count, and every distinct product. */
#include <string.h>

#include "explain.h"

#define MAX_DISTINCT 64

static bool is_sparse(const esp_model_layer *layer)
{
    return layer->problem.pattern.kind != ESP_PATTERN_DENSE;
}

/* ---- counts ---- */

static void count_layer(const cli_state *cli, const esp_model_layer *layer, layer_counts *counts)
{
    esp_plan_options options = explain_plan_options(cli, layer->forms);
    esp_plan *plan = NULL, *free_plan = NULL;
    counts->sparse++;
    if (esp_plan_create_with(cli->device, &layer->problem, &options, &plan, NULL) != ESP_OK) {
        return;
    }
    counts->runs_dense += esp_plan_runs_dense(plan);
    counts->measured = counts->measured || esp_plan_get_reason(plan).tuned_tokens > 0;
    options = explain_plan_options(cli, 0);
    if (!esp_plan_runs_dense(plan) &&
        esp_plan_create_with(cli->device, &layer->problem, &options, &free_plan, NULL) == ESP_OK) {
        counts->would_dense += esp_plan_runs_dense(free_plan);
    }
    esp_plan_free(plan);
    esp_plan_free(free_plan);
}

layer_counts explain_count(const cli_state *cli, const esp_model *model, esp_model_call call)
{
    layer_counts counts = {0};
    esp_model_layer layer;
    for (int64_t i = 0; esp_model_get_layer(model, i, call, &layer); i++) {
        if (is_sparse(&layer)) {
            count_layer(cli, &layer, &counts);
        }
    }
    return counts;
}

void explain_counts(const cli_state *cli, const layer_counts *counts, const char *prefix,
                    const char *phase, int64_t tokens, FILE *stream)
{
    const char *how = counts->measured ? "measured" : "predicted";
    bool forced = cli->common.kernel != NULL;
    if (counts->runs_dense > 0) {
        fprintf(stream, "%s%s: %lld of %lld sparse layers run dense", prefix, phase,
                (long long)counts->runs_dense, (long long)counts->sparse);
        if (forced) {
            fprintf(stream, ", as --kernel says\n");
        } else {
            fprintf(stream, ": that is faster at %lld tokens (%s)\n", (long long)tokens, how);
        }
    }
    if (counts->would_dense > 0 && !forced) {
        fprintf(stream,
                "%s%s: %lld of %lld sparse layers run sparse, though dense is faster at %lld "
                "tokens (%s); --memory two holds both forms\n",
                prefix, phase, (long long)counts->would_dense, (long long)counts->sparse,
                (long long)tokens, how);
    }
}

void explain_note(const cli_state *cli, const esp_model *model, const char *prefix,
                  const char *phase, esp_model_call call, FILE *stream)
{
    layer_counts counts = explain_count(cli, model, call);
    explain_counts(cli, &counts, prefix, phase, call.tokens, stream);
}

void explain_dense_json(const cli_state *cli, const esp_model *model, esp_model_call prefill,
                        cli_record *record)
{
    const esp_model_call decode = {.tokens = 1};
    cli_record counts = record_object();
    record_int(&counts, "prefill", explain_count(cli, model, prefill).runs_dense);
    record_int(&counts, "decode", explain_count(cli, model, decode).runs_dense);
    record_child(record, "layers_run_dense", counts);
}

/* ---- memory ---- */

static const char *memory_name(const cli_state *cli)
{
    if (cli->plan == NULL) {
        return memory_names[0];
    }
    return memory_names[cli->plan->require_sparse ? (int)ESP_MEMORY_SPARSE : cli->plan->memory];
}

const char *explain_memory(const cli_state *cli, const esp_model_info *info,
                           char text[WHY_TEXT_MAX])
{
    text[0] = '\0';
    if (info->sparse_layers > 0) {
        snprintf(text, WHY_TEXT_MAX,
                 "%s: of %lld sparse layers %lld are held sparse, %lld dense, %lld in both forms",
                 memory_name(cli), (long long)info->sparse_layers,
                 (long long)(info->sparse_layers - info->dense_form_layers - info->two_form_layers),
                 (long long)info->dense_form_layers, (long long)info->two_form_layers);
    }
    return text;
}

void explain_memory_json(const cli_state *cli, const esp_model_info *info, cli_record *record)
{
    record_text(record, "memory", memory_name(cli));
    record_int(record, "sparse_layers", info->sparse_layers);
    record_int(record, "dense_form_layers", info->dense_form_layers);
    record_int(record, "two_form_layers", info->two_form_layers);
}

/* ---- every product ---- */

typedef struct distinct {
    esp_model_layer layer; /* the first */
    char problem[ESP_PROBLEM_TEXT_MAX];
    int64_t count;
} distinct;

/* Layers that are the same product, held in the same forms, are one entry. */
static int list_distinct(const esp_model *model, esp_model_call call, distinct list[MAX_DISTINCT])
{
    esp_model_layer layer;
    int count = 0;
    for (int64_t i = 0; esp_model_get_layer(model, i, call, &layer); i++) {
        char name[ESP_PROBLEM_TEXT_MAX];
        int at = 0;
        esp_matmul_problem_print(&layer.problem, name);
        while (at < count &&
               (strcmp(list[at].problem, name) != 0 || list[at].layer.forms != layer.forms)) {
            at++;
        }
        if (at == MAX_DISTINCT) {
            continue;
        }
        if (at == count) {
            list[count] = (distinct){.layer = layer};
            memcpy(list[count++].problem, name, sizeof name);
        }
        list[at].count++;
    }
    return count;
}

esp_status explain_model(const cli_state *cli, const esp_model *model, esp_model_call call,
                         FILE *stream, esp_error *error)
{
    distinct list[MAX_DISTINCT];
    int count = list_distinct(model, call, list);
    for (int i = 0; i < count; i++) {
        fprintf(stream, "\n%lld layers like %s\n", (long long)list[i].count, list[i].layer.name);
        TRY(explain_problem(cli, &list[i].layer.problem, list[i].layer.forms, stream, error));
    }
    return ESP_OK;
}

esp_status explain_model_json(const cli_state *cli, const esp_model *model, esp_model_call call,
                              cli_record *records, esp_error *error)
{
    distinct list[MAX_DISTINCT];
    int count = list_distinct(model, call, list);
    for (int i = 0; i < count; i++) {
        cli_record record = record_object();
        record_int(&record, "layers", list[i].count);
        record_text(&record, "first", list[i].layer.name);
        esp_status status =
            explain_problem_json(cli, &list[i].layer.problem, list[i].layer.forms, &record, error);
        if (status != ESP_OK) {
            record_free(&record);
            return status;
        }
        record_add(records, record);
    }
    return ESP_OK;
}

esp_status explain_and_print(const cli_state *cli, const esp_model *model, esp_model_call call,
                             cli_record *record, esp_error *error)
{
    if (cli->plan->explain) {
        cli_record list = record_list();
        esp_status status = explain_model_json(cli, model, call, &list, error);
        record_child(record, "explain", list);
        if (status != ESP_OK) {
            record_free(record);
            return status;
        }
    }
    return record_print(record, error);
}

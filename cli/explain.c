/* One product: candidates, times, reasons. */
#include "explain.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ALL_FORMS ((unsigned)(ESP_FORM_SPARSE | ESP_FORM_DENSE | ESP_FORM_SPREAD))

const char *const memory_names[] = {"one", "sparse", "two", NULL};

esp_plan_options explain_plan_options(const cli_state *cli, unsigned forms)
{
    return (esp_plan_options){.kernel_glob = cli->common.kernel,
                              .forms = forms != 0 ? forms : ALL_FORMS};
}

esp_status explain_check_sparse(const cli_state *cli, const esp_matmul_problem *problem,
                                esp_error *error)
{
    if (cli->plan == NULL || !cli->plan->require_sparse) {
        return ESP_OK;
    }
    esp_plan_options options = explain_plan_options(cli, 0);
    esp_plan *plan = NULL;
    options.require_sparse = true;
    TRY(esp_plan_create_with(cli->device, problem, &options, &plan, error));
    esp_plan_free(plan);
    return ESP_OK;
}

/* ---- reasons ---- */

const char *explain_reason(const esp_plan *plan, char text[WHY_TEXT_MAX])
{
    esp_plan_reason reason = esp_plan_get_reason(plan);
    char how[64] = "predicted";
    if (reason.tuned_tokens > 0) {
        snprintf(how, sizeof how, "measured at %lld tokens%s", (long long)reason.tuned_tokens,
                 reason.shipped ? " on such a device" : "");
    }
    bool dense = esp_plan_runs_dense(plan);
    const char *other = dense ? reason.sparse_kernel : reason.dense_kernel;
    int used = snprintf(text, WHY_TEXT_MAX, "%.1f us %s", reason.us, how);
    if (other != NULL && strcmp(other, esp_plan_kernel(plan)) != 0 && used < WHY_TEXT_MAX) {
        snprintf(text + used, (size_t)(WHY_TEXT_MAX - used), "; the fastest %s one, %s, %.1f us",
                 dense ? "sparse" : "dense", other, dense ? reason.sparse_us : reason.dense_us);
    }
    return text;
}

static const char *form_names(unsigned forms)
{
    static const char *const names[] = {
        "none", "sparse", "dense", "both", "spread", "sparse and spread", "dense and spread",
        "all"};
    return names[forms & ALL_FORMS];
}

/* ---- candidates ---- */

typedef struct candidates {
    esp_plan_candidate *list;
    int count;
    esp_plan *plan; /* NULL: none can run */
    esp_error why;  /* then */
} candidates;

static void free_candidates(candidates *found)
{
    free(found->list);
    esp_plan_free(found->plan);
}

static esp_status find_candidates(const cli_state *cli, const esp_matmul_problem *problem,
                                  unsigned forms, candidates *found, esp_error *error)
{
    esp_plan_options options = explain_plan_options(cli, forms);
    candidates made = {.count = esp_kernel_count()};
    made.list = calloc((size_t)made.count, sizeof *made.list);
    if (made.list == NULL) {
        return cli_fail_memory(error, "candidates");
    }
    esp_status status =
        esp_plan_explain(cli->device, problem, &options, made.list, made.count, &made.count, error);
    if (status != ESP_OK) {
        free_candidates(&made);
        return status;
    }
    (void)!esp_plan_create_with(cli->device, problem, &options, &made.plan, &made.why);
    *found = made;
    return ESP_OK;
}

static void time_cell(cli_table *table, double us)
{
    table_cell(table, us > 0 ? "%.1f" : "-", us);
}

static void candidate_rows(const candidates *found, cli_table *table)
{
    for (int i = 0; i < found->count; i++) {
        const esp_plan_candidate *one = &found->list[i];
        table_cell(table, "%s", one->kernel);
        time_cell(table, one->predicted_us);
        time_cell(table, one->tuned_us);
        table_cell(table, "%s%s",
                   one->why_not != NULL ? one->why_not
                   : one->chosen        ? "chosen"
                                        : "can run",
                   one->runs_dense && one->why_not == NULL ? " (runs dense)" : "");
    }
}

esp_status explain_problem(const cli_state *cli, const esp_matmul_problem *problem, unsigned forms,
                           FILE *stream, esp_error *error)
{
    static const char *const heads[] = {"<kernel", ">predicted us", ">measured us", "<verdict"};
    char name[ESP_PROBLEM_TEXT_MAX], why[WHY_TEXT_MAX];
    candidates found;
    cli_table table;
    TRY(find_candidates(cli, problem, forms, &found, error));
    esp_matmul_problem_print(problem, name);
    fprintf(stream, "%s on %s, forms held: %s\n", name, esp_device_name(cli->device),
            problem->pattern.kind == ESP_PATTERN_DENSE
                ? "dense"
                : form_names(forms != 0 ? forms : ALL_FORMS));
    table_begin(&table, COUNT(heads), heads);
    candidate_rows(&found, &table);
    esp_status status = table_print(&table, stream, error);
    if (found.plan != NULL) {
        fprintf(stream, "chosen: %s%s: %s\n", esp_plan_kernel(found.plan),
                esp_plan_runs_dense(found.plan) ? " (runs dense)" : "",
                explain_reason(found.plan, why));
    } else {
        fprintf(stream, "chosen: none: %s\n", found.why.message);
    }
    table_free(&table);
    free_candidates(&found);
    return status;
}

esp_status explain_problem_json(const cli_state *cli, const esp_matmul_problem *problem,
                                unsigned forms, cli_record *record, esp_error *error)
{
    char name[ESP_PROBLEM_TEXT_MAX], why[WHY_TEXT_MAX];
    candidates found;
    TRY(find_candidates(cli, problem, forms, &found, error));
    cli_record list = record_list();
    esp_matmul_problem_print(problem, name);
    record_text(record, "problem", name);
    record_text(record, "forms", form_names(forms != 0 ? forms : ALL_FORMS));
    record_text(record, "chosen", found.plan != NULL ? esp_plan_kernel(found.plan) : NULL);
    record_bool(record, "runs_dense", found.plan != NULL && esp_plan_runs_dense(found.plan));
    record_text(record, "why",
                found.plan != NULL ? explain_reason(found.plan, why) : found.why.message);
    for (int i = 0; i < found.count; i++) {
        const esp_plan_candidate *one = &found.list[i];
        cli_record candidate = record_object();
        record_text(&candidate, "kernel", one->kernel);
        record_text(&candidate, "why_not", one->why_not);
        record_bool(&candidate, "runs_dense", one->runs_dense);
        record_bool(&candidate, "chosen", one->chosen);
        record_real(&candidate, "predicted_us", one->predicted_us > 0 ? one->predicted_us : NAN);
        record_real(&candidate, "measured_us", one->tuned_us > 0 ? one->tuned_us : NAN);
        record_int(&candidate, "measured_tokens", one->tuned_tokens);
        record_add(&list, candidate);
    }
    record_child(record, "candidates", list);
    free_candidates(&found);
    return ESP_OK;
}

/* espalier kernels: the catalogue and, for a problem, who can run it and who is chosen. */
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "explain.h"
#include "output.h"

static cli_record kernel_json(const esp_kernel_info *info)
{
    cli_record record = record_object();
    record_text(&record, "name", info->name);
    record_text(&record, "device", info->device);
    record_text(&record, "operation", info->operation);
    record_text(&record, "format", info->format);
    record_text(&record, "level", info->level);
    record_text(&record, "idea", info->idea);
    return record;
}

static esp_status print_catalogue(const cli_state *cli, esp_error *error)
{
    static const char *const heads[] = {"<kernel", "<device", "<format", "<level", "<idea"};
    cli_record record = record_begin("kernels"), list = record_list();
    cli_table table;
    table_begin(&table, COUNT(heads), heads);
    for (int i = 0; i < esp_kernel_count(); i++) {
        esp_kernel_info info = esp_kernel_get(i);
        record_add(&list, kernel_json(&info));
        table_cell(&table, "%s", info.name);
        table_cell(&table, "%s", info.device);
        table_cell(&table, "%s", info.format);
        table_cell(&table, "%s", info.level);
        table_cell(&table, "%s", info.idea);
    }
    record_child(&record, "kernels", list);
    esp_status status =
        cli->common.json ? record_print(&record, error) : table_print(&table, stdout, error);
    record_free(&record);
    table_free(&table);
    return status;
}

/* ---- one problem ---- */

typedef struct kernels_args {
    plan_args plan;
} kernels_args;

/* The candidate of that name, or NULL: a kernel of another device. */
static const esp_plan_candidate *candidate_of(const esp_plan_candidate *list, int count,
                                              const char *name)
{
    for (int i = 0; i < count; i++) {
        if (strcmp(list[i].kernel, name) == 0) {
            return &list[i];
        }
    }
    return NULL;
}

static const char *verdict(const esp_plan_candidate *candidate)
{
    return candidate == NULL            ? "it belongs to another device"
           : candidate->why_not != NULL ? candidate->why_not
           : candidate->chosen          ? candidate->runs_dense ? "chosen (runs dense)" : "chosen"
           : candidate->runs_dense      ? "can run (dense)"
                                        : "can run";
}

static void add_verdicts(const esp_plan_candidate *candidates, int count, cli_record *list,
                         cli_table *table)
{
    for (int i = 0; i < esp_kernel_count(); i++) {
        esp_kernel_info info = esp_kernel_get(i);
        const esp_plan_candidate *one = candidate_of(candidates, count, info.name);
        cli_record kernel = kernel_json(&info);
        bool can_run = one != NULL && one->why_not == NULL;
        record_bool(&kernel, "can_run", can_run);
        record_text(&kernel, "why_not", can_run ? NULL : verdict(one));
        record_bool(&kernel, "runs_dense", can_run && one->runs_dense);
        record_real(&kernel, "predicted_us", can_run ? one->predicted_us : (double)NAN);
        record_real(&kernel, "measured_us",
                    can_run && one->tuned_us > 0 ? one->tuned_us : (double)NAN);
        record_int(&kernel, "measured_tokens", can_run ? one->tuned_tokens : 0);
        record_add(list, kernel);
        table_cell(table, "%s", info.name);
        table_cell(table, "%s", verdict(one));
    }
}

/* plan NULL: none can run, or may. */
static esp_status print_verdicts(const cli_state *cli, const esp_matmul_problem *problem,
                                 const esp_plan *plan, const esp_plan_candidate *candidates,
                                 int count, esp_error *error)
{
    static const char *const heads[] = {"<kernel", "<for this problem"};
    char text[ESP_PROBLEM_TEXT_MAX], why[WHY_TEXT_MAX];
    cli_record record = record_begin("kernels"), list = record_list();
    cli_table table;
    esp_matmul_problem_print(problem, text);
    record_text(&record, "problem", text);
    record_text(&record, "device", esp_device_name(cli->device));
    record_text(&record, "chosen", plan != NULL ? esp_plan_kernel(plan) : "");
    record_bool(&record, "runs_dense", plan != NULL && esp_plan_runs_dense(plan));
    record_text(&record, "why", plan != NULL ? explain_reason(plan, why) : NULL);
    table_begin(&table, COUNT(heads), heads);
    add_verdicts(candidates, count, &list, &table);
    record_child(&record, "kernels", list);
    esp_status status;
    if (cli->common.json) {
        status = record_print(&record, error);
    } else if (cli->plan->explain) {
        status = explain_problem(cli, problem, 0, stdout, error);
    } else {
        printf("%s on %s\n", text, esp_device_name(cli->device));
        status = table_print(&table, stdout, error);
    }
    if (plan != NULL && esp_plan_runs_dense(plan) && !cli->common.json && !cli->plan->explain) {
        printf("it runs dense: %s\n", explain_reason(plan, why));
    }
    record_free(&record);
    table_free(&table);
    return status;
}

static esp_status explain(cli_state *cli, const char *text, esp_error *error)
{
    esp_matmul_problem problem;
    TRY(esp_matmul_problem_parse(text, &problem, error));
    TRY(cli_open_device(cli, error));
    if (problem.compute == ESP_COMPUTE_AUTO) {
        problem.compute = (esp_compute)cli->common.compute;
    }
    esp_plan_options options = explain_plan_options(cli, 0);
    options.require_sparse = cli->plan->require_sparse;
    int count = esp_kernel_count();
    esp_plan_candidate *candidates = calloc((size_t)count, sizeof *candidates);
    if (candidates == NULL) {
        return cli_fail_memory(error, "candidates");
    }
    esp_plan *plan = NULL;
    esp_error why = {0};
    esp_status status = ESP_OK, printed = esp_plan_explain(cli->device, &problem, &options,
                                                           candidates, count, &count, error);
    if (printed == ESP_OK) {
        status = esp_plan_create_with(cli->device, &problem, &options, &plan, &why);
        printed = print_verdicts(cli, &problem, plan, candidates, count, error);
    }
    esp_plan_free(plan);
    free(candidates);
    if (printed == ESP_OK && status != ESP_OK) {
        *error = why;
    }
    return printed != ESP_OK ? printed : status;
}

static esp_status run(cli_state *cli, esp_error *error)
{
    cli->plan = &((const kernels_args *)cli->args)->plan;
    return cli->operand_count > 0 ? explain(cli, cli->operands[0], error)
                                  : print_catalogue(cli, error);
}

static const cli_option options[] = {PLAN_OPTIONS(kernels_args), {.name = NULL}};

const cli_command kernels_command = {
    .name = "kernels",
    .summary = "list the kernels; for a problem, which one is chosen and why not the others",
    .operands = "[PROBLEM]",
    .most_operands = 1,
    .options = options,
    .args_bytes = sizeof(kernels_args),
    .run = run,
    .notes =
        "PROBLEM is matmul/PATTERN/TYPE/OUTxINxTOKENS, for example "
        "matmul/64:2:8/bf16/4096x4096x1. Dense kernels are candidates for a sparse weight, too, "
        "as if it were held in all forms. Exit code 4 when no kernel can run it, or when "
        "--require-sparse forbids the one that is chosen."};

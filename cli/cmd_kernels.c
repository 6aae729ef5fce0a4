/* espalier kernels: the catalogue and, for a problem, who can run it and who is chosen. */
#include <string.h>

#include "cli.h"
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

/* "chosen", "can run", or why not. */
static const char *verdict(const cli_state *cli, int kernel, const esp_matmul_problem *problem,
                           const char *chosen)
{
    const char *why_not = esp_kernel_why_not(kernel, cli->device, problem);
    if (why_not != NULL) {
        return why_not;
    }
    return strcmp(esp_kernel_get(kernel).name, chosen) == 0 ? "chosen" : "can run";
}

static esp_status print_verdicts(const cli_state *cli, const esp_matmul_problem *problem,
                                 const char *chosen, esp_error *error)
{
    static const char *const heads[] = {"<kernel", "<for this problem"};
    char text[ESP_PROBLEM_TEXT_MAX];
    cli_record record = record_begin("kernels"), list = record_list();
    cli_table table;
    esp_matmul_problem_print(problem, text);
    record_text(&record, "problem", text);
    record_text(&record, "device", esp_device_name(cli->device));
    record_text(&record, "chosen", chosen);
    table_begin(&table, COUNT(heads), heads);
    for (int i = 0; i < esp_kernel_count(); i++) {
        const char *what = verdict(cli, i, problem, chosen);
        esp_kernel_info info = esp_kernel_get(i);
        cli_record kernel = kernel_json(&info);
        bool can_run = esp_kernel_why_not(i, cli->device, problem) == NULL;
        record_bool(&kernel, "can_run", can_run);
        record_text(&kernel, "why_not", can_run ? NULL : what);
        record_add(&list, kernel);
        table_cell(&table, "%s", esp_kernel_get(i).name);
        table_cell(&table, "%s", what);
    }
    record_child(&record, "kernels", list);
    esp_status status;
    if (cli->common.json) {
        status = record_print(&record, error);
    } else {
        printf("%s on %s\n", text, esp_device_name(cli->device));
        status = table_print(&table, stdout, error);
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
    esp_plan *plan = NULL;
    esp_error why = {0};
    esp_status status = esp_plan_create(cli->device, &problem, cli->common.kernel, &plan, &why);
    esp_status printed =
        print_verdicts(cli, &problem, status == ESP_OK ? esp_plan_kernel(plan) : "", error);
    esp_plan_free(plan);
    if (printed == ESP_OK && status != ESP_OK) {
        *error = why;
    }
    return printed != ESP_OK ? printed : status;
}

static esp_status run(cli_state *cli, esp_error *error)
{
    return cli->operand_count > 0 ? explain(cli, cli->operands[0], error)
                                  : print_catalogue(cli, error);
}

static const cli_option options[] = {{.name = NULL}};

const cli_command kernels_command = {
    .name = "kernels",
    .summary = "list the kernels; for a problem, which one is chosen and why not the others",
    .operands = "[PROBLEM]",
    .most_operands = 1,
    .options = options,
    .run = run,
    .notes = "PROBLEM is matmul/PATTERN/TYPE/OUTxINxTOKENS, for example "
             "matmul/64:2:8/bf16/4096x4096x1. Exit code 4 when no kernel can run it."};

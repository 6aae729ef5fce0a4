/* What bench says of the choice of a kernel for a problem: what a plan would choose, had the weight
 * both forms. */
#include "bench.h"

esp_status bench_explain_text(const cli_state *cli, const char *text, esp_error *error)
{
    esp_matmul_problem problem;
    esp_plan *plan = NULL;
    esp_plan_options options = explain_plan_options(cli, 0);
    char why[WHY_TEXT_MAX];
    TRY(esp_matmul_problem_parse(text, &problem, error));
    if (cli->plan != NULL && cli->plan->explain) {
        printf("\n");
        return explain_problem(cli, &problem, 0, stdout, error);
    }
    TRY(esp_plan_create_with(cli->device, &problem, &options, &plan, error));
    if (esp_plan_runs_dense(plan)) {
        printf("a plan runs %s dense, by %s: %s\n", text, esp_plan_kernel(plan),
               explain_reason(plan, why));
    }
    esp_plan_free(plan);
    return ESP_OK;
}

esp_status bench_explain_json(const cli_state *cli, const char *text, cli_record *record,
                              esp_error *error)
{
    esp_matmul_problem problem;
    cli_record explained = record_object();
    if (cli->plan == NULL || !cli->plan->explain) {
        record_free(&explained);
        return ESP_OK;
    }
    esp_status status = esp_matmul_problem_parse(text, &problem, error);
    if (status == ESP_OK) {
        status = explain_problem_json(cli, &problem, 0, &explained, error);
    }
    record_child(record, "explain", explained);
    if (status != ESP_OK) {
        record_free(record);
    }
    return status;
}

esp_status bench_check_sparse(cli_state *cli, const char *text, esp_error *error)
{
    esp_matmul_problem problem;
    TRY(esp_matmul_problem_parse(text, &problem, error));
    TRY(cli_open_device(cli, error));
    if (problem.compute == ESP_COMPUTE_AUTO) {
        problem.compute = (esp_compute)cli->common.compute;
    }
    return explain_check_sparse(cli, &problem, error);
}
